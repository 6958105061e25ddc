#include "backend/host/host_memory.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "backend/host/cgroup.h"
#include "backend/host/numa_node.h"
#include "base/system_error.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

constexpr std::size_t kHugePageBytes = 2u << 20;
/// What one thread takes at a time.
constexpr std::size_t kPopulateBytes = 64u << 20;

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

/// Takes the pages now: the next request then sees what is really left. Kernels before 5.14 refuse
/// it and take them at the first touch. Returns an errno that means there is no memory, or 0.
int populate(std::byte* data, std::size_t bytes, int threads) {
#ifdef MADV_POPULATE_WRITE
  std::atomic<std::size_t> next{0};
  std::atomic<int> failure{0};
  const auto work = [&] {
    for (;;) {
      const std::size_t begin = next.fetch_add(kPopulateBytes);
      if (begin >= bytes || failure != 0) return;
      const std::size_t piece = std::min(kPopulateBytes, bytes - begin);
      if (madvise(data + begin, piece, MADV_POPULATE_WRITE) == 0) continue;
      if (errno == ENOMEM || errno == EFAULT) failure = errno;
      return;
    }
  };
  {
    std::vector<std::jthread> helpers;
    const auto wanted = std::min<std::size_t>(static_cast<std::size_t>(std::max(threads, 1)),
                                              (bytes + kPopulateBytes - 1) / kPopulateBytes);
    for (std::size_t i = 1; i < wanted; ++i) helpers.emplace_back(work);
    work();
  }
  return failure;
#else
  (void)data, (void)bytes, (void)threads;
  return 0;
#endif
}

}  // namespace

MemoryInfo read_host_memory() {
  const CgroupLimits limits = read_cgroup_limits();
  return {std::min(read_meminfo("MemAvailable"), limits.memory_free_bytes),
          std::min(read_meminfo("MemTotal"), limits.memory_bytes)};
}

Buffer map_host(std::size_t bytes, int numa_node) {
  if (bytes == 0) return {};
  const std::size_t mapped = align_up(bytes, kPageBytes);
  void* data = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    throw MemoryError(fmt::format("mmap of {} failed: {}; is there a limit (ulimit -v)?",
                                  format_memory(static_cast<double>(bytes)),
                                  system_message(errno)));
  }
  Buffer buffer(data, bytes, [mapped](void* memory) { munmap(memory, mapped); });
  // Fewer TLB misses while weights stream by; only a hint, kernels without huge pages refuse it.
  if (mapped >= kHugePageBytes) madvise(data, mapped, MADV_HUGEPAGE);
  prefer_node(data, mapped, numa_node);
  return buffer;
}

void take_host_pages(std::span<std::byte> part, int threads) {
  if (part.empty()) return;
  const auto at = reinterpret_cast<std::uintptr_t>(part.data());
  std::byte* const first = part.data() - at % kPageBytes;
  const std::size_t bytes = align_up(at % kPageBytes + part.size(), kPageBytes);
  if (const int error = populate(first, bytes, threads); error != 0) {
    throw MemoryError(fmt::format("{} of memory could not be taken: {}; lower the memory budgets",
                                  format_memory(static_cast<double>(bytes)),
                                  system_message(error)));
  }
}

Buffer allocate_host(std::size_t bytes, int threads, int numa_node) {
  Buffer buffer = map_host(bytes, numa_node);
  take_host_pages(buffer.span(), threads);
  return buffer;
}

}  // namespace zi
