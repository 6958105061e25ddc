#include "backend/host/thread_pool.h"

#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <chrono>

#include "backend/host/numa_node.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

template <typename Condition>
void look_for(const Condition& condition, std::chrono::microseconds time) {
  const auto end = std::chrono::steady_clock::now() + time;
  while (!condition()) {
    for (int i = 0; i < 32; ++i) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    if (std::chrono::steady_clock::now() > end) return;
  }
}

constexpr std::uint64_t run_of(std::int64_t first, std::int64_t end) {
  return static_cast<std::uint64_t>(first) << 32 | static_cast<std::uint64_t>(end);
}
constexpr std::int64_t first_of(std::uint64_t run) { return static_cast<std::int64_t>(run >> 32); }
constexpr std::int64_t end_of(std::uint64_t run) {
  return static_cast<std::int64_t>(run & 0xffffffff);
}

}  // namespace

ThreadPool::ThreadPool(int threads, int numa_node, std::chrono::microseconds look)
    : look_(look), runs_(static_cast<std::size_t>(std::max(threads, 1))) {
  for (int thread = 1; thread < threads; ++thread) {
    workers_.emplace_back([=, this] { loop(thread, numa_node); });
    pthread_setname_np(workers_.back().native_handle(), "ops");
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  begun_.notify_all();
  workers_.clear();  // joins
}

std::optional<std::int64_t> ThreadPool::take_next(int thread) {
  std::atomic<std::uint64_t>& left = runs_[static_cast<std::size_t>(thread)].left;
  std::uint64_t run = left.load(std::memory_order_relaxed);
  while (first_of(run) < end_of(run)) {
    const std::uint64_t rest = run_of(first_of(run) + 1, end_of(run));
    if (left.compare_exchange_weak(run, rest, std::memory_order_relaxed)) return first_of(run);
  }
  return std::nullopt;
}

std::optional<std::int64_t> ThreadPool::take_from_others() {
  while (true) {
    std::atomic<std::uint64_t>* longest = nullptr;
    std::uint64_t run = 0;
    for (Run& other : runs_) {
      const std::uint64_t left = other.left.load(std::memory_order_relaxed);
      if (end_of(left) - first_of(left) > end_of(run) - first_of(run)) {
        longest = &other.left;
        run = left;
      }
    }
    if (longest == nullptr) return std::nullopt;
    const std::uint64_t rest = run_of(first_of(run), end_of(run) - 1);
    if (longest->compare_exchange_weak(run, rest, std::memory_order_relaxed)) return end_of(rest);
  }
}

void ThreadPool::work(Job& job, int thread) {
  while (true) {
    std::optional<std::int64_t> index = take_next(thread);
    if (!index) index = take_from_others();
    if (!index) return;
    try {
      job.call(job.body, *index, thread);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!job.failure) job.failure = std::current_exception();
      for (Run& run : runs_) run.left = 0;
    }
  }
}

std::int64_t ThreadPool::dealt(std::int64_t index, std::int64_t count) const {
  const std::int64_t least = count / threads(), longer = count % threads();
  const std::int64_t after = index - longer * (least + 1);
  const std::int64_t thread = after < 0 ? index / (least + 1) : longer + after / least;
  return (index - first_index(thread, count)) * threads() + thread;
}

std::int64_t ThreadPool::first_index(std::int64_t thread, std::int64_t count) const {
  return thread * (count / threads()) + std::min(thread, count % threads());
}

void ThreadPool::share(Job& job) {
  if (job.count >> 32 != 0) throw Error("too many parts of an operation");
  {
    const std::lock_guard lock(mutex_);
    for (std::int64_t thread = 0; thread < threads(); ++thread) {
      runs_[static_cast<std::size_t>(thread)].left =
          run_of(first_index(thread, job.count), first_index(thread + 1, job.count));
    }
    job_ = &job;
    ++generation_;
  }
  const auto useful = std::min<std::int64_t>(job.count - 1, threads() - 1);
  if (useful == threads() - 1) {
    begun_.notify_all();
  } else {
    for (std::int64_t i = 0; i < useful; ++i) begun_.notify_one();
  }
  work(job, 0);
  std::unique_lock lock(mutex_);
  job_ = nullptr;  // a thread that comes after this finds nothing to do
  if (inside_ > 0) {
    lock.unlock();
    look_for([&] { return inside_ == 0; }, kUsualLook);
    lock.lock();
  }
  left_.wait(lock, [&] { return inside_ == 0; });
  if (job.failure) std::rethrow_exception(job.failure);
}

void ThreadPool::loop(int thread, int numa_node) {
  bind_thread_to_node(numa_node);
  omp_set_num_threads(1);  // oneDNN inside a job must not start threads of its own
  std::uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    if (generation_ == seen && !ending_) {
      lock.unlock();
      look_for([&] { return generation_ != seen; }, look_);
      lock.lock();
    }
    begun_.wait(lock, [&] { return ending_ || (job_ != nullptr && generation_ != seen); });
    if (ending_) return;
    seen = generation_;
    Job& job = *job_;
    ++inside_;
    lock.unlock();
    work(job, thread);
    lock.lock();
    if (--inside_ == 0) left_.notify_one();
  }
}

}  // namespace zi
