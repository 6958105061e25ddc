#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

namespace zi {

/// The threads of the CPU ops. Unlike OpenMP's, they sleep while there is no work, so that streams,
/// MPI and other ranks get the cores; they look for more for some microseconds first, since within
/// a pass one job follows the other and waking up takes longer than a small job. The caller does
/// not wait for a thread that has not begun: where somebody else holds its core, the caller does
/// that share itself instead of losing a time slice in each op.
class ThreadPool {
 public:
  /// About what waking up takes.
  static constexpr std::chrono::microseconds kUsualLook{30};

  /// `threads` includes the caller's: one fewer is started, on the cores of the NUMA node (-1: of
  /// any). They look for work that long before they sleep.
  explicit ThreadPool(int threads, int numa_node = -1, std::chrono::microseconds look = kUsualLook);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls body(index, thread) once for each index in [0, count), with count < 2^32 (else Error);
  /// `thread` < threads() is never in two calls at a time. Each thread takes the next index of a
  /// run of its own, so that what lies one after the other in memory is one stream for it; one that
  /// is done takes from the ends of the others' runs. Returns when all are done and rethrows the
  /// first exception. One caller at a time. `parallel` false: the caller does it all.
  template <typename Body>
  void run(std::int64_t count, const Body& body, bool parallel = true) {
    if (!parallel || count <= 1 || workers_.empty()) {
      for (std::int64_t index = 0; index < count; ++index) body(index, 0);
      return;
    }
    Job job;
    job.count = count;
    job.body = &body;
    job.call = [](const void* erased, std::int64_t index, int thread) {
      (*static_cast<const Body*>(erased))(index, thread);
    };
    share(job);
  }

  /// For work that is in order of its size, the largest first: which of `count` parts to take for
  /// an index of `run`, so that every thread begins with large ones.
  std::int64_t dealt(std::int64_t index, std::int64_t count) const;

 private:
  struct Job {
    std::int64_t count = 0;
    const void* body = nullptr;
    void (*call)(const void* body, std::int64_t index, int thread) = nullptr;
    std::exception_ptr failure;  // under mutex_
  };

  /// The indices of a thread that nobody has taken: [first, end), in the upper and the lower half.
  struct alignas(64) Run {
    std::atomic<std::uint64_t> left{0};
  };

  void share(Job& job);
  /// Of a thread's run: the first `count % threads()` runs have one more than the others.
  std::int64_t first_index(std::int64_t thread, std::int64_t count) const;
  std::optional<std::int64_t> take_next(int thread);
  std::optional<std::int64_t> take_from_others();
  void work(Job& job, int thread);
  void loop(int thread, int numa_node);

  std::chrono::microseconds look_;
  std::mutex mutex_;
  std::condition_variable begun_;
  std::condition_variable left_;
  std::vector<Run> runs_;  // one a thread, of the job
  Job* job_ = nullptr;     // that workers may still join
  // Both change under mutex_, and are looked at without it before a wait.
  std::atomic<std::uint64_t> generation_{0};  // of jobs: a worker joins each once
  std::atomic<int> inside_{0};                // workers in the job
  bool ending_ = false;
  std::vector<std::jthread> workers_;  // last: they use all of the above
};

}  // namespace zi
