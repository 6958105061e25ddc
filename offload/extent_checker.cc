#include "offload/extent_checker.h"

#include <utility>

namespace zi {

ExtentChecker::ExtentChecker(std::string path)
    : path_(std::move(path)), worker_([this] { work(); }) {}

ExtentChecker::~ExtentChecker() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  queued_.notify_all();
}

void ExtentChecker::check(const ShardExtent& extent, int unit, std::span<const std::byte> bytes) {
  {
    const std::lock_guard lock(mutex_);
    jobs_.push_back({extent, unit, bytes});
  }
  queued_.notify_one();
}

std::uint64_t ExtentChecker::checked() const {
  const std::lock_guard lock(mutex_);
  return checked_;
}

void ExtentChecker::wait(std::uint64_t count) {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return checked_ >= count; });
  if (failure_) std::rethrow_exception(failure_);
}

void ExtentChecker::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    queued_.wait(lock, [&] { return stopping_ || !jobs_.empty(); });
    if (stopping_) return;
    const Job job = jobs_.front();
    jobs_.pop_front();
    lock.unlock();
    std::exception_ptr failure;
    try {
      verify_extent(job.extent, job.unit, job.bytes, path_);
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    if (!failure_) failure_ = failure;
    ++checked_;
    done_.notify_all();
  }
}

}  // namespace zi
