#ifdef __SSE2__
#include <emmintrin.h>
#endif
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "backend/cpu/cpu_event.h"
#include "backend/host/host_memory.h"
#include "backend/host/thread_pool.h"
#include "zero_infer/backend.h"
#include "zero_infer/bytes.h"
#include "zero_infer/cpu_stream.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

std::string read_cpu_name() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    const std::size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "CPU";
}

/// From this size on a copy bypasses the caches: a block that is copied once and read once would
/// only push out what the products are using, and reading its lines before overwriting them costs a
/// third of the traffic.
constexpr std::size_t kStreamingBytes = 1u << 20;

void copy_bytes(void* dst, const void* src, std::size_t bytes) {
#ifdef __SSE2__
  constexpr std::size_t kLine = 64;
  if (bytes >= kStreamingBytes && reinterpret_cast<std::uintptr_t>(dst) % kLine == 0) {
    auto* to = static_cast<__m128i*>(dst);
    const auto* from = static_cast<const __m128i*>(src);
    const std::size_t lines = bytes / kLine;
    for (std::size_t i = 0; i < lines; ++i, to += 4, from += 4) {
      const __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1);
      const __m128i c = _mm_loadu_si128(from + 2), d = _mm_loadu_si128(from + 3);
      _mm_stream_si128(to, a);
      _mm_stream_si128(to + 1, b);
      _mm_stream_si128(to + 2, c);
      _mm_stream_si128(to + 3, d);
    }
    _mm_sfence();
    std::memcpy(to, from, bytes % kLine);
    return;
  }
#endif
  std::memcpy(dst, src, bytes);
}

/// Threads that share one copy; several streams take turns.
struct Copiers {
  explicit Copiers(int threads) : pool(threads) {}

  void copy(void* dst, const void* src, std::size_t bytes) {
    const auto parts = static_cast<std::size_t>(pool.threads());
    if (parts == 1 || bytes < parts * kStreamingBytes) {
      copy_bytes(dst, src, bytes);
      return;
    }
    const std::lock_guard lock(mutex);
    const std::size_t part = align_up((bytes + parts - 1) / parts, kPageBytes);
    pool.run(pool.threads(), [&](std::int64_t index, int) {
      const std::size_t begin = std::min(static_cast<std::size_t>(index) * part, bytes);
      copy_bytes(static_cast<std::byte*>(dst) + begin, static_cast<const std::byte*>(src) + begin,
                 std::min(part, bytes - begin));
    });
  }

  std::mutex mutex;
  ThreadPool pool;
};

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(int copy_threads) : copiers_(std::make_shared<Copiers>(copy_threads)) {}

  std::string name() const override { return read_cpu_name(); }
  bool is_host() const override { return true; }

  MemoryInfo memory() const override { return read_host_memory(); }
  MemoryInfo host_memory() const override { return memory(); }

  Buffer allocate(std::size_t bytes) override;
  Buffer allocate_for_loading(std::size_t bytes) override;
  void take_pages(std::span<std::byte> part) override { take_host_pages(part, 1); }
  Buffer allocate_pinned(std::size_t bytes) override { return allocate(bytes); }

  std::unique_ptr<Stream> make_stream(const std::string& name, StreamPriority) override {
    return std::make_unique<CpuStream>(name);
  }
  std::unique_ptr<Event> make_event() override { return std::make_unique<CpuEvent>(); }

  double elapsed_seconds(const Event& start, const Event& end) const override {
    const auto from = dynamic_cast<const CpuEvent&>(start).state()->reached_at();
    const auto to = dynamic_cast<const CpuEvent&>(end).state()->reached_at();
    return std::chrono::duration<double>(to - from).count();
  }

  void copy(void* dst, const void* src, std::size_t bytes, Stream& stream) override {
    if (bytes == 0) return;
    dynamic_cast<CpuStream&>(stream).enqueue(
        [=, copiers = copiers_] { copiers->copy(dst, src, bytes); });
  }
  void zero(void* dst, std::size_t bytes, Stream& stream) override {
    if (bytes == 0) return;
    dynamic_cast<CpuStream&>(stream).enqueue([=] { std::memset(dst, 0, bytes); });
  }

 private:
  /// Refuses what the host does not have.
  void check_free(std::size_t bytes) const;

  std::shared_ptr<Copiers> copiers_;
};

Buffer CpuDevice::allocate(std::size_t bytes) {
  check_free(bytes);
  constexpr int kMostThreads = 8;
  const auto cores = static_cast<int>(std::thread::hardware_concurrency());
  return allocate_host(bytes, std::clamp(cores / 2, 1, kMostThreads));
}

Buffer CpuDevice::allocate_for_loading(std::size_t bytes) {
  check_free(bytes);
  return map_host(bytes);
}

void CpuDevice::check_free(std::size_t bytes) const {
  if (bytes == 0) return;
  const MemoryInfo info = memory();
  const std::size_t mapped = align_up(bytes, kPageBytes);
  if (bytes > info.total_bytes || mapped > info.free_bytes) {
    throw MemoryError(
        fmt::format("{} of memory is needed, {} of {} is free on this host; lower the memory "
                    "budgets, use more "
                    "hosts or place more of the model on NVMe",
                    format_memory(static_cast<double>(bytes)),
                    format_memory(static_cast<double>(info.free_bytes)),
                    format_memory(static_cast<double>(info.total_bytes))));
  }
}

}  // namespace

std::unique_ptr<Device> make_cpu_device(int copy_threads) {
  return std::make_unique<CpuDevice>(copy_threads);
}

}  // namespace zi
