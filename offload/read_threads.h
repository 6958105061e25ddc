#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace zi {

/// Threads that read, in the order in which they are asked to. They wait for storage most of the
/// time: their number is how many reads are in flight, and may be above that of the cores. One
/// thread makes and calls it.
class ReadThreads {
 public:
  /// At least one. Where the system gives fewer, those share the work. Throws Error when it gives
  /// none.
  explicit ReadThreads(int threads);
  /// Drops what has not begun and waits for the rest.
  ~ReadThreads();
  ReadThreads(const ReadThreads&) = delete;
  ReadThreads& operator=(const ReadThreads&) = delete;

  /// Counts the steps that were asked for.
  using Ticket = std::uint64_t;

  /// Asks for a step. What it uses must stay until it was waited for. After a failure nothing more
  /// is run.
  Ticket start(std::function<void()> step);
  /// Waits until this step and all before it are done; rethrows the first failure of any.
  void wait(Ticket ticket);
  /// Waits for all of them.
  void finish();

 private:
  void work(std::size_t thread);
  /// All steps before this one are done. Call it under the lock.
  Ticket first_undone() const;

  static constexpr Ticket kNone = ~Ticket{0};
  std::mutex mutex_;  // guards all but the threads
  std::condition_variable asked_;
  std::condition_variable done_;
  std::deque<std::function<void()>> steps_;  // not begun
  Ticket begun_ = 0;                         // number of the first of them
  std::vector<Ticket> in_hand_;              // of each thread
  std::exception_ptr failure_;
  bool ending_ = false;
  std::vector<std::jthread> threads_;
};

/// From now on the calling thread runs when no other wants its core: for work that goes ahead of
/// reads, which must not wait for it. Only a hint.
void give_way();

}  // namespace zi
