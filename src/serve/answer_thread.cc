#include "serve/answer_thread.h"

#include <fmt/format.h>

#include <exception>
#include <iterator>
#include <utility>

#include "zero_infer/log.h"

namespace zi {

AnswerThread::AnswerThread() : thread_([this] { run(); }) {}

void AnswerThread::stop() {
  {
    const std::scoped_lock lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  tasks_.clear();
}

void AnswerThread::post(std::vector<Task>& tasks) {
  if (tasks.empty()) return;
  {
    const std::scoped_lock lock(mutex_);
    if (ending_) {
      // Nobody tells it any more.
    } else if (tasks_.empty()) {
      tasks_.swap(tasks);
    } else {
      tasks_.insert(tasks_.end(), std::move_iterator(tasks.begin()),
                    std::move_iterator(tasks.end()));
    }
  }
  tasks.clear();
  changed_.notify_all();
}

bool AnswerThread::flush(std::chrono::milliseconds most) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, most, [this] { return tasks_.empty() && !busy_; });
}

void AnswerThread::run() {
  std::vector<Task> tasks;
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return ending_ || !tasks_.empty(); });
    if (ending_) return;
    tasks.swap(tasks_);
    busy_ = true;
    lock.unlock();
    for (Task& task : tasks) {
      try {
        if (task.tell) task.tell(*task.answer);
      } catch (const std::exception& error) {
        log_error(fmt::format("an answer could not be written: {}", error.what()));
      }
      task.answer.reset();
    }
    tasks.clear();
    lock.lock();
    busy_ = false;
    if (tasks_.empty()) changed_.notify_all();
  }
}

}  // namespace zi
