#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "backend/cuda/packed_fragments.cuh"
#include "backend/cuda/row_scales.cuh"
#include "backend/cuda/wide_product.cuh"

/// What the kernels for products of packed weights share: codes, read once, their scales and the
/// activations of the same columns come in steps of some units of columns into a ring in shared
/// memory, two blocks a multiprocessor. Each warp has 16 weight rows of a tile, of whose codes it
/// makes fragments in registers.
namespace zi {

inline constexpr int kMostPackedSharedBytes = 111 << 10;
inline constexpr int kMostPackedStages = 8;
inline constexpr int kFewestPackedStages = 3;
/// Columns of a block that shares a tile at least, for all numbers of rows.
inline constexpr int kFewestPackedCols = 8 * kUnitCols;

/// A stage of the ring of packed_mma.cuh: activations, codes, scales; each row's units side by
/// side.
template <typename FragmentsOf, int kRows>
struct PackedStage {
  using Fragments = FragmentsOf;
  static constexpr int kUnitBytes =
      kRows * kUnitCols * 2 + kWideTileRows * (Fragments::kCodeBytes + Fragments::kScaleBytes);
  /// Long steps, where codes and activations do not take too much memory for that.
  static constexpr int kUnits =
      kRows <= 16 && kFewestPackedStages * 2 * kUnitBytes <= kMostPackedSharedBytes ? 2 : 1;
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
  static_assert(kStages >= kFewestPackedStages);
};

/// Threads of a block that copy scales and activations; the others copy codes. A thread's copies
/// arrive in their order, and so the first activations do not wait for all codes ahead of them.
inline constexpr int kScaleThreads = kWideTileRows;

/// The copies of scales of a byte, as they are: of a thread's row, those of a step side by side.
template <typename StageOf>
class ByteScaleCopies {
  static constexpr int kBytes = StageOf::kScaleRowBytes;

 public:
  __device__ void finish_step(const RowScales&) {}
  /// `row` begins at the scales of the step in a row.
  __device__ void copy_step(std::uint32_t to, const std::byte* row, const RowScales& scales, int) {
    row += scales.at;
    if constexpr (kBytes == 16) {
      ptx::copy_async_16(to, row, true);
    } else if constexpr (kBytes == 8) {
      ptx::copy_async_8(to, row, true);
    } else {
      ptx::copy_async_4(to, row, true);
    }
  }
  /// Bytes from a row's begin, or from a step to the next, in so many steps.
  static __device__ int advance(int steps) { return steps * kBytes; }
};

/// A thread's share of the copies of codes, or of scales: then those of a row of the tile.
template <typename StageOf, bool kMixed>
class WeightCopies {
  static constexpr int kPieces = StageOf::kCodeRowBytes / 16;  // of a row
  static constexpr int kRowsAtOnce = (kWideThreads - kScaleThreads) / kPieces;
  static constexpr int kRowsOfThread = kWideTileRows / kRowsAtOnce;
  using Scales = typename StageOf::Fragments::template Scales<StageOf>;

 public:
  __device__ WeightCopies(const WideProduct& args, const WideWork& work, const RowScales& scales)
      : args_(args),
        work_(work),
        row_scales_(scales),
        policy_(evict_first_policy()),
        advance_(has_scales() ? Scales::advance(args.splits)
                              : args.splits * StageOf::kCodeRowBytes),
        tile_(work.tile) {
    start_tile();
  }

  /// Where what a thread copies goes first, from the start of a stage.
  static __device__ std::uint32_t place() {
    if (has_scales()) return StageOf::kScalesAt + threadIdx.x * StageOf::kScaleRowBytes;
    return static_cast<std::uint32_t>(StageOf::kCodesAt + row() * StageOf::kCodeRowBytes +
                                      StageOf::Fragments::code_place(row(), piece(), kPieces) * 16);
  }

  /// Starts the copies of the next step; none after the last one. `to` has place() in it.
  __device__ void copy_step(std::uint32_t to) {
    if (has_scales()) scales_.finish_step(row_scales_);
    if (tile_ >= args_.tiles) return;
    if (has_scales()) {
      scales_.copy_step(to, from_[0], row_scales_, args_.cols - left_);
      from_[0] += advance_;
    } else {
      const bool there = left_ > piece() * kPieceCols;
#pragma unroll
      for (int i = 0; i < kRowsOfThread; ++i) {
        copy_weights_and_fetch_async(to + i * kRowsAtOnce * StageOf::kCodeRowBytes, from_[i], there,
                                     policy_);
        from_[i] += advance_;
      }
    }
    left_ -= work_.advance;
    if (--steps_ == 0) {
      tile_ += work_.stride;
      start_tile();
    }
  }

 private:
  static constexpr int kPieceCols = 16 * StageOf::kCols / StageOf::kCodeRowBytes;

  static __device__ bool has_scales() { return threadIdx.x < kScaleThreads; }
  static __device__ int row() { return (static_cast<int>(threadIdx.x) - kScaleThreads) / kPieces; }
  static __device__ int piece() {
    return (static_cast<int>(threadIdx.x) - kScaleThreads) % kPieces;
  }

  __device__ void start_tile() {
    if (tile_ >= args_.tiles) return;
    steps_ = work_.steps;
    left_ = args_.cols - work_.begin;
    const StreamedTile tile = tile_of<kWideTileRows, kMixed>(args_, tile_);
    if (has_scales()) {
      from_[0] =
          row_at<kMixed>(args_, tile, static_cast<int>(threadIdx.x)) + Scales::advance(work_.split);
      return;
    }
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      // Nobody stores the sums of rows after the last one.
      from_[i] = row_at<kMixed>(args_, tile, row() + i * kRowsAtOnce) +
                 work_.split * StageOf::kCodeRowBytes + piece() * 16;
    }
  }

  const WideProduct& args_;
  const WideWork& work_;
  const RowScales& row_scales_;
  std::uint64_t policy_;
  int advance_;
  int tile_;
  int steps_ = 0;  // of the tile, not yet begun
  int left_ = 0;   // columns from the next step's first on
  const std::byte* from_[kRowsOfThread];
  Scales scales_;
};

/// What a lane has of a unit of its warp's rows g and g + 8, in a stage.
template <typename StageOf>
class LaneCodes {
  using Fragments = typename StageOf::Fragments;
  static constexpr int kPieces = StageOf::kCodeRowBytes / 16;  // of a row

 public:
  /// Reads scales.
  __device__ __forceinline__ LaneCodes(const std::byte* codes, const std::byte* scales, int unit)
      : codes_(codes + tile_row() * StageOf::kCodeRowBytes),
        row_(static_cast<int>(threadIdx.x) % 32 / 4),
        first_(unit * Fragments::kCodeBytes / 16) {
    const std::byte* const own =
        scales + tile_row() * StageOf::kScaleRowBytes + unit * Fragments::kScaleBytes;
    upper_.load_scales(own);
    lower_.load_scales(own + 8 * StageOf::kScaleRowBytes);
  }

  /// Reads codes of a half, half 0 before half 1, and makes its fragments.
  template <int kHalf>
  __device__ __forceinline__ void make(HalfFragments& upper, HalfFragments& lower) {
    upper_.template load_half<kPieces, kHalf>(codes_, row_, first_);
    lower_.template load_half<kPieces, kHalf>(codes_ + 8 * StageOf::kCodeRowBytes, row_, first_);
    upper_.template make<kHalf>(upper);
    lower_.template make<kHalf>(lower);
  }

 private:
  static __device__ int tile_row() {
    return static_cast<int>(threadIdx.x) / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
  }

  const std::byte* codes_;
  int row_;
  int first_;
  typename Fragments::Lane upper_, lower_;
};

template <typename Output>
struct PackedArgs : WideArgs<Output> {
  RowScales scales;
};

}  // namespace zi
