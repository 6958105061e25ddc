#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "zero_infer/dtype.h"
#include "zero_infer/partition_layout.h"

/// What the kernels for products of few rows share: weights, and their copies to shared memory.
namespace zi {

struct StreamedWeights {
  const std::byte* w;
  std::size_t block_stride_bytes;
  std::uint32_t rows_per_block;
  int ld;  // weight rows of all blocks
  int cols;
};

struct StreamedProduct : StreamedWeights {
  const std::byte* x;  // (rows, cols)
  int rows;
};

inline StreamedWeights streamed(const RowBlockMatrix& w) {
  return {.w = w.data,
          .block_stride_bytes = w.block_stride_bytes,
          .rows_per_block = static_cast<std::uint32_t>(w.rows_per_block),
          .ld = static_cast<int>(w.padded_rows()),
          .cols = static_cast<int>(w.cols)};
}

/// Equal 16-bit types, columns in multiples of 8, and `a` and all rows of w aligned to 16 bytes.
inline bool can_stream(const void* a, DType a_dtype, const RowBlockMatrix& w) {
  const auto aligned = [](std::uintptr_t address) { return address % 16 == 0; };
  // Tiles and columns are counted in int, with room for one more round of all blocks.
  constexpr std::int64_t kMost = std::numeric_limits<int>::max() / 2;
  return a_dtype == w.dtype && a_dtype != DType::kFloat32 && w.cols >= 8 && w.cols % 8 == 0 &&
         w.cols <= kMost && w.padded_rows() >= 1 && w.padded_rows() <= kMost &&
         aligned(reinterpret_cast<std::uintptr_t>(a)) &&
         aligned(reinterpret_cast<std::uintptr_t>(w.data)) &&
         (w.blocks == 1 || aligned(w.block_stride_bytes));
}

/// Where an element is; for rows after the last one, where the last row's is.
__device__ inline const std::byte* weight_at(const StreamedWeights& weights, int row, int col) {
  const auto last = static_cast<std::uint32_t>(min(row, weights.ld - 1));
  const std::uint32_t block = last / weights.rows_per_block;
  return weights.w + block * weights.block_stride_bytes +
         (static_cast<std::size_t>(last - block * weights.rows_per_block) * weights.cols + col) * 2;
}

__device__ inline std::uint64_t evict_first_policy() {
  std::uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;\n" : "=l"(policy));
  return policy;
}

/// 16 bytes, zeros without `present`.
__device__ inline void copy_weights_async(std::uint32_t shared, const void* global, bool present,
                                          std::uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;\n" ::"r"(shared),
               "l"(global), "r"(present ? 16 : 0), "l"(policy)
               : "memory");
}

/// The same, and the 256 bytes around them come into L2.
__device__ inline void copy_weights_and_fetch_async(std::uint32_t shared, const void* global,
                                                    bool present, std::uint64_t policy) {
  asm volatile(
      "cp.async.cg.shared.global.L2::cache_hint.L2::256B [%0], [%1], 16, %2, %3;\n" ::"r"(shared),
      "l"(global), "r"(present ? 16 : 0), "l"(policy)
      : "memory");
}

/// Brings the line of an address into L2.
__device__ inline void fetch_to_l2(const void* global) {
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(global));
}

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

template <int kPending>
__device__ inline void wait_for_all_copies_but() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

}  // namespace zi
