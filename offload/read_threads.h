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

/// Threads that run steps of reading, in the order in which they are asked for. They wait for
/// storage most of the time: their number is the number of reads in flight, and may exceed the
/// number of cores. One thread makes and calls it.
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

  /// Asks for a step. What it uses must stay valid until somebody has waited for it. After a
  /// failure nothing more is run.
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
  std::vector<Ticket> running_;              // of each thread
  std::exception_ptr failure_;
  bool ending_ = false;
  std::vector<std::jthread> threads_;
};

/// From now on the calling thread runs only when no other needs its core: for work that runs ahead
/// of reads, which must not wait for it. Only a hint.
void lower_priority();

}  // namespace zi
