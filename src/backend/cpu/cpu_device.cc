#ifdef __SSE2__
#include <emmintrin.h>
#endif
#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>

#include "backend/cpu/cgroup.h"
#include "backend/cpu/cpu_event.h"
#include "zero_infer/backend.h"
#include "zero_infer/bytes.h"
#include "zero_infer/cpu_stream.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

constexpr std::size_t kHugePageBytes = 2u << 20;

/// A line of /proc/meminfo in bytes.
std::size_t read_meminfo(const std::string& key) {
  std::ifstream in("/proc/meminfo");
  for (std::string line; std::getline(in, line);) {
    if (line.compare(0, key.size(), key) == 0 && line[key.size()] == ':') {
      return std::stoull(line.substr(key.size() + 1)) << 10;
    }
  }
  throw IoError(fmt::format("/proc/meminfo has no line `{}`", key));
}

std::string read_cpu_name() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    const std::size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "CPU";
}

/// From here on a copy goes past the caches: a block that is copied once and read once would only
/// push out what the products are using, and reading its lines before overwriting them costs a
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

class CpuDevice final : public Device {
 public:
  std::string name() const override { return read_cpu_name(); }

  MemoryInfo memory() const override {
    const CgroupLimits limits = read_cgroup_limits();
    return {std::min(read_meminfo("MemAvailable"), limits.memory_free_bytes),
            std::min(read_meminfo("MemTotal"), limits.memory_bytes)};
  }
  MemoryInfo host_memory() const override { return memory(); }

  Buffer allocate(std::size_t bytes) override;
  Buffer allocate_pinned(std::size_t bytes) override { return allocate(bytes); }

  std::unique_ptr<Stream> make_stream(const std::string& name) override {
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
    dynamic_cast<CpuStream&>(stream).enqueue([=] { copy_bytes(dst, src, bytes); });
  }
  void zero(void* dst, std::size_t bytes, Stream& stream) override {
    if (bytes == 0) return;
    dynamic_cast<CpuStream&>(stream).enqueue([=] { std::memset(dst, 0, bytes); });
  }
};

Buffer CpuDevice::allocate(std::size_t bytes) {
  if (bytes == 0) return {};
  const MemoryInfo info = memory();
  const std::size_t mapped = align_up(bytes, kPageBytes);
  if (bytes > info.total_bytes || mapped > info.free_bytes) {
    throw ConfigError(
        fmt::format("{} of memory are needed, {} of {} are free on this host; lower the memory "
                    "budgets, use more "
                    "hosts or place more of the model on NVMe",
                    format_memory(static_cast<double>(bytes)),
                    format_memory(static_cast<double>(info.free_bytes)),
                    format_memory(static_cast<double>(info.total_bytes))));
  }
  void* data = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    throw ConfigError(fmt::format("mmap of {} failed: {}; is there a limit (ulimit -v)?",
                                  format_memory(static_cast<double>(bytes)), std::strerror(errno)));
  }
  Buffer buffer(data, bytes, [mapped](void* memory) { munmap(memory, mapped); });
  // Fewer TLB misses while weights stream by; only a hint, kernels without huge pages refuse it.
  if (mapped >= kHugePageBytes) madvise(data, mapped, MADV_HUGEPAGE);
#ifdef MADV_POPULATE_WRITE
  // Takes the pages now: the next request then sees what is really left. Kernels before 5.14 refuse
  // it and take them at the first touch.
  if (madvise(data, mapped, MADV_POPULATE_WRITE) != 0 && (errno == ENOMEM || errno == EFAULT)) {
    throw ConfigError(fmt::format("{} of memory could not be taken: {}; lower the memory budgets",
                                  format_memory(static_cast<double>(bytes)), std::strerror(errno)));
  }
#endif
  return buffer;
}

}  // namespace

std::unique_ptr<Device> make_cpu_device() { return std::make_unique<CpuDevice>(); }

}  // namespace zi
