#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "backend/cuda/packed_fragments.cuh"
#include "backend/cuda/wide_product.cuh"

/// What the kernels for products of packed weights share: codes, read once, their scales and the
/// activations of the same columns come in steps of some units of columns into a ring in shared
/// memory, two blocks a multiprocessor. Each warp has 16 weight rows of a tile, of whose codes it
/// makes fragments in registers.
namespace zi {

/// Rows for which warps multiply by themselves (packed_mma.cuh); warpgroups do for more
/// (packed_wgmma.cuh).
inline constexpr int kMostMmaRows = 16;
inline constexpr int kMostPackedSharedBytes = 111 << 10;
inline constexpr int kMostPackedStages = 8;
/// Columns of a block that shares a tile at least, for all numbers of rows.
inline constexpr int kFewestPackedCols = 8 * kUnitCols;

/// A stage of the ring of packed_mma.cuh: activations, codes, scales; each row's units side by
/// side.
template <typename Fragments, int kRows>
struct PackedStage {
  /// Long steps, where codes and activations do not take too much memory for that.
  static constexpr int kUnits = kRows == 8 || Fragments::kCodeBytes == 64 ? 2 : 1;
  static constexpr int kCols = kUnits * kUnitCols;
  static constexpr int kXRowBytes = kCols * 2;
  static constexpr int kCodeRowBytes = kUnits * Fragments::kCodeBytes;
  static constexpr int kScaleRowBytes = kUnits * Fragments::kScaleBytes;
  static constexpr int kCodesAt = kRows * kXRowBytes;
  static constexpr int kScalesAt = kCodesAt + kWideTileRows * kCodeRowBytes;
  static constexpr int kBytes = kScalesAt + kWideTileRows * kScaleRowBytes;
  static_assert(kBytes % 16 == 0);
  static constexpr int kStages = std::min(kMostPackedStages, kMostPackedSharedBytes / kBytes);
  static constexpr int kSharedBytes =
      std::max(kStages * kBytes, kRows* kWideTileRows* static_cast<int>(sizeof(float)));
  static_assert(kStages >= 3);
};

/// Where the 16-byte piece of a row of codes is in it, so that lanes hit all banks that read pieces
/// 4 u + t (int4), or pieces 2 t and then 2 t + 1 (int8), of two rows.
template <typename StageOf>
__device__ constexpr int code_place(int row, int piece) {
  if (StageOf::kCodeRowBytes == 64) return piece;
  return StageOf::kCodeRowBytes == 64 * StageOf::kUnits ? piece ^ (row & 1) << 2
                                                        : piece ^ (row & 1);
}

/// A thread's share of the copies of codes and scales.
template <typename StageOf, bool kMixed>
class CodeCopies {
  static constexpr int kPieces = StageOf::kCodeRowBytes / 16;  // of a row
  static constexpr int kRowsAtOnce = kWideThreads / kPieces;
  static constexpr int kRowsOfThread = kWideTileRows / kRowsAtOnce;

 public:
  __device__ CodeCopies(const WideProduct& args, const WideWork& work, int scales_at)
      : args_(args),
        work_(work),
        scales_at_(scales_at),
        policy_(evict_first_policy()),
        code_advance_(args.splits * StageOf::kCodeRowBytes),
        scale_advance_(args.splits * StageOf::kScaleRowBytes),
        tile_(work.tile) {
    start_tile();
  }

  /// Where a thread's first piece of a step's codes goes, from their start.
  static __device__ std::uint32_t place() {
    const int row = static_cast<int>(threadIdx.x) / kPieces;
    const int piece = static_cast<int>(threadIdx.x) % kPieces;
    return static_cast<std::uint32_t>(row * StageOf::kCodeRowBytes +
                                      code_place<StageOf>(row, piece) * 16);
  }

  /// Starts those of the next step; none after the last one. `codes` has place() in it, `scales`
  /// the thread's row.
  __device__ void copy_step(std::uint32_t codes, std::uint32_t scales) {
    if (tile_ >= args_.tiles) return;
    const bool there = left_ > static_cast<int>(threadIdx.x) % kPieces * kPieceCols;
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      copy_weights_and_fetch_async(codes + i * kRowsAtOnce * StageOf::kCodeRowBytes, from_[i],
                                   there, policy_);
      from_[i] += code_advance_;
    }
    if (threadIdx.x < kWideTileRows) {
      if constexpr (StageOf::kScaleRowBytes == 16) {
        ptx::copy_async_16(scales, scales_, left_ > 0);
      } else if constexpr (StageOf::kScaleRowBytes == 8) {
        ptx::copy_async_8(scales, scales_, left_ > 0);
      } else {
        ptx::copy_async_4(scales, scales_, left_ > 0);
      }
      scales_ += scale_advance_;
    }
    left_ -= work_.advance;
    if (--steps_ == 0) {
      tile_ += work_.stride;
      start_tile();
    }
  }

 private:
  static constexpr int kPieceCols = 16 * StageOf::kCols / StageOf::kCodeRowBytes;

  __device__ void start_tile() {
    if (tile_ >= args_.tiles) return;
    steps_ = work_.steps;
    left_ = args_.cols - work_.begin;
    const StreamedTile tile = tile_of<kWideTileRows, kMixed>(args_, tile_);
    const int row = static_cast<int>(threadIdx.x) / kPieces;
    const int piece = static_cast<int>(threadIdx.x) % kPieces;
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      // Nobody stores the sums of rows after the last one.
      from_[i] = row_at<kMixed>(args_, tile, row + i * kRowsAtOnce) +
                 work_.split * StageOf::kCodeRowBytes + piece * 16;
    }
    scales_ = row_at<kMixed>(args_, tile, static_cast<int>(threadIdx.x) % kWideTileRows) +
              scales_at_ + work_.split * StageOf::kScaleRowBytes;
  }

  const WideProduct& args_;
  const WideWork& work_;
  int scales_at_;
  std::uint64_t policy_;
  int code_advance_;
  int scale_advance_;
  int tile_;
  int steps_ = 0;  // of the tile, not yet begun
  int left_ = 0;   // columns from the next step's first on
  const std::byte* from_[kRowsOfThread];
  const std::byte* scales_;
};

/// The fragments of a unit of a warp's rows g and g + 8, in a stage.
template <typename Fragments, typename StageOf>
__device__ __forceinline__ void make_fragments(const std::byte* stage, int unit,
                                               LaneFragments& upper, LaneFragments& lower) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int lane_of_row = lane % 4;
  const int row = static_cast<int>(threadIdx.x) / 32 * 16 + lane / 4;
  const std::byte* const codes = stage + StageOf::kCodesAt + row * StageOf::kCodeRowBytes;
  const std::byte* const scales =
      stage + StageOf::kScalesAt + row * StageOf::kScaleRowBytes + unit * Fragments::kScaleBytes;
  constexpr int kPieces = Fragments::kCodeBytes / 64;  // of a lane
  const int first = unit * Fragments::kCodeBytes / 16 + lane_of_row * kPieces;
  const int at = code_place<StageOf>(lane / 4, first) * 16;
  const int second = code_place<StageOf>(lane / 4, first + 1) * 16 - at;
  Fragments::make(codes + at, scales, lane_of_row, second, upper);
  Fragments::make(codes + 8 * StageOf::kCodeRowBytes + at, scales + 8 * StageOf::kScaleRowBytes,
                  lane_of_row, second, lower);
}

template <typename Output>
struct PackedArgs : WideArgs<Output> {
  int scales_at;  // of a row
};

}  // namespace zi
