#include "offload/read_threads.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <system_error>
#include <utility>

#include "zero_infer/error.h"

namespace zi {

ReadThreads::ReadThreads(int threads) {
  const auto wanted = static_cast<std::size_t>(std::max(1, threads));
  running_.assign(wanted, kNone);
  try {
    for (std::size_t i = 0; i < wanted; ++i) threads_.emplace_back([this, i] { work(i); });
  } catch (const std::system_error& failure) {
    if (threads_.empty()) {
      throw Error(
          fmt::format("no thread can be started to read weights: {}; raise the limit of "
                      "processes (ulimit -u)",
                      failure.what()));
    }
  }
}

ReadThreads::~ReadThreads() {
  {
    const std::lock_guard lock(mutex_);
    steps_.clear();
    ending_ = true;
  }
  asked_.notify_all();
  threads_.clear();  // joins
}

ReadThreads::Ticket ReadThreads::start(std::function<void()> step) {
  Ticket ticket = 0;
  {
    const std::lock_guard lock(mutex_);
    ticket = begun_ + steps_.size();
    steps_.push_back(std::move(step));
  }
  asked_.notify_one();
  return ticket;
}

void ReadThreads::wait(Ticket ticket) {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return failure_ != nullptr || first_undone() > ticket; });
  if (failure_) std::rethrow_exception(failure_);
}

void ReadThreads::finish() {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return failure_ != nullptr || first_undone() == begun_ + steps_.size(); });
  if (failure_) std::rethrow_exception(failure_);
}

ReadThreads::Ticket ReadThreads::first_undone() const {
  return std::min(begun_, std::ranges::min(running_));
}

void ReadThreads::work(std::size_t thread) {
  std::unique_lock lock(mutex_);
  while (true) {
    asked_.wait(lock, [&] { return ending_ || !steps_.empty(); });
    if (steps_.empty()) return;
    const std::function<void()> step = std::move(steps_.front());
    steps_.pop_front();
    const bool skipped = failure_ != nullptr;
    running_[thread] = begun_++;
    lock.unlock();
    std::exception_ptr failed;
    try {
      if (!skipped) step();
    } catch (...) {
      failed = std::current_exception();
    }
    lock.lock();
    running_[thread] = kNone;
    if (failed && !failure_) failure_ = failed;
    done_.notify_all();
  }
}

void lower_priority() {
  constexpr int kLowest = 19;
  (void)::setpriority(PRIO_PROCESS, 0, kLowest);  // Linux: of this thread alone
}

}  // namespace zi
