#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "serve/pending_answer.h"

namespace zi {

/// Writes answers on a thread of its own, in the order of `post`: no pass waits for their JSON, and
/// a PendingAnswer needs no locks. Any thread may post.
class AnswerThread {
 public:
  /// What an answer is to be told. Without `tell` it is only let go, on the thread of answers.
  struct Task {
    std::shared_ptr<PendingAnswer> answer;
    std::function<void(PendingAnswer&)> tell{};
  };

  AnswerThread();
  ~AnswerThread() { stop(); }
  AnswerThread(const AnswerThread&) = delete;
  AnswerThread& operator=(const AnswerThread&) = delete;

  /// Takes the tasks out of the list.
  void post(std::vector<Task>& tasks);
  /// Waits until all that was posted is told; false when that takes longer.
  bool flush(std::chrono::milliseconds most);
  /// Drops what is still to be told, now and later.
  void stop();

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Task> tasks_;
  bool busy_ = false;
  bool ending_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace zi
