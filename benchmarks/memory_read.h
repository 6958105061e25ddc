#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "backend/host/thread_pool.h"
#include "base/simd_clones.h"
#include "zero_infer/bytes.h"

namespace zi {

/// Reads every byte once, and asks for memory ahead as products do.
ZI_SIMD_CLONES inline std::uint64_t read_bytes(const std::byte* data, std::size_t bytes) {
  constexpr std::size_t kLine = 64, kWords = kLine / sizeof(std::uint64_t);
  constexpr std::size_t kAhead = 1024;
  std::uint64_t sums[kWords] = {};
  for (std::size_t at = 0; at + kLine <= bytes; at += kLine) {
    __builtin_prefetch(data + at + kAhead);
    std::uint64_t words[kWords];
    std::memcpy(words, data + at, kLine);
    for (std::size_t i = 0; i < kWords; ++i) sums[i] ^= words[i];
  }
  std::uint64_t all = 0;
  for (const std::uint64_t sum : sums) all ^= sum;
  return all;
}

/// The same by the threads of a pool, in pieces of the size that a job of a product has: what no
/// product of these weights can be faster than.
inline void read_memory(ThreadPool& pool, std::span<const std::byte> memory) {
  constexpr std::size_t kPiece = 128 << 10;
  const auto pieces = static_cast<std::int64_t>(ceil_div(memory.size(), kPiece));
  pool.run(pieces, [&](std::int64_t piece, int) {
    const std::size_t first = static_cast<std::size_t>(piece) * kPiece;
    const std::uint64_t sum =
        read_bytes(memory.data() + first, std::min(kPiece, memory.size() - first));
    asm volatile("" ::"r"(sum));  // it is used
  });
}

}  // namespace zi
