#pragma once

#include <cstdint>

#include "zero_infer/ops.h"

/// How a warp of cuda_attention_grouped.cu takes its pages: where their pieces lie in its shared
/// memory, and their numbers.
namespace zi {

/// A warp's ring of pages of K and V. kDim: head_dim rounded up to a size that there is a kernel
/// for.
template <int kDim>
struct PageRing {
  static constexpr int kKeyChunks = (kDim + 31) / 32;    // of 32 elements
  static constexpr int kValueChunks = (kDim + 63) / 64;  // of 64 elements
  static constexpr int kKeyPieces = 2 * kKeyChunks;      // of 16 bytes, of a lane
  static constexpr int kPieces = kKeyPieces + 4 * kValueChunks;
  static constexpr int kStageBytes = kPieces * 32 * 16;  // a page
  /// Of the rings in shared memory: data arrive in sectors of 32 bytes and lines of 128, whose
  /// halves would be written one after the other where they lay across two rows of banks.
  static constexpr int kAlignment = 128;
  static_assert(kStageBytes % kAlignment == 0);
  static constexpr int kStages = kDim <= 64 ? 4 : 3;
  static constexpr int kWarpBytes = kStages * kStageBytes;
  static constexpr int kWarps = kDim <= 128 ? 4 : 2;  // of a block at most
  static_assert(kWarps * kWarpBytes <= 96 << 10);     // what every device grants a block
  static constexpr int kSumStride = 64 * kValueChunks + 2;
  /// Lanes that copy a row, a piece each, and rows that a warp copies at once.
  static constexpr int kRowLanes = kDim <= 64 ? 8 : kDim <= 128 ? 16 : 32;
  static constexpr int kRowsAtOnce = 32 / kRowLanes;
  static constexpr int kCopies = kKvPageTokens / kRowsAtOnce;

  /// Where lane 4 g + t finds elements 32 c + 8 t and on of key 8 r + g. Counted in pieces.
  __device__ static int key_place(int c, int r, int g, int t) {
    return (2 * c + r) * 32 + ((4 * g + t) ^ (c % 2 * 4));
  }
  /// Where lane 4 g + t finds elements 64 c + 8 g and on of value 8 (i / 2) + 2 t + i % 2.
  __device__ static int value_place(int c, int i, int g, int t) {
    return (kKeyPieces + 4 * c + i) * 32 + t * 8 + (g ^ (2 * t));
  }
};

/// The pages of a warp in a split: every `stride`-th from `first` on, `count` of them. Lanes look
/// their numbers up 32 at a time, a round ahead.
class PageNumbers {
 public:
  __device__ PageNumbers(const std::int32_t* table, int first, int stride, int count)
      : table_(table + first), stride_(stride), count_(count) {
    now_ = look_up(0);
    next_ = look_up(32);
  }
  /// Of page `i`; called with i = 0, 1, 2, .. by all lanes.
  __device__ std::int32_t at(int i) {
    if (i > 0 && i % 32 == 0) {
      now_ = next_;
      next_ = look_up(i + 32);
    }
    return __shfl_sync(0xffffffffu, now_, i % 32);
  }

 private:
  __device__ std::int32_t look_up(int i) const {
    const int mine = i + static_cast<int>(threadIdx.x) % 32;
    return mine < count_ ? table_[mine * stride_] : 0;
  }

  const std::int32_t* table_;
  int stride_;
  int count_;
  std::int32_t now_, next_;
};

}  // namespace zi
