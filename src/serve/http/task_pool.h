#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace boost::asio {
class io_context;
}

namespace zi {

/// Threads that run tasks and the completions of asynchronous operations. They block all signals.
class TaskPool {
 public:
  /// `threads`: at least one; `name` is what a debugger shows, up to 15 bytes. Throws Error.
  TaskPool(int threads, std::string name);
  /// As `stop`.
  ~TaskPool();
  TaskPool(const TaskPool&) = delete;
  TaskPool& operator=(const TaskPool&) = delete;

  boost::asio::io_context& context();
  /// Any thread, also of the pool. A pool that has ended drops the task.
  void post(std::function<void()> task);
  bool ended() const;
  /// Waits until every task and operation has ended; then ends the threads.
  void finish();
  /// Waits for tasks that run, drops all others, and ends the threads.
  void stop();

 private:
  struct Loop;

  void run();
  void join();

  std::unique_ptr<Loop> loop_;
  std::vector<std::thread> threads_;
};

}  // namespace zi
