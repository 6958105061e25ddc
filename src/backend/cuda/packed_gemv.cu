#include <algorithm>
#include <bit>
#include <cstddef>
#include <type_traits>

#include "backend/cuda/cuda_attention_mma.cuh"
#include "backend/cuda/cuda_support.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/packed_gemv.h"
#include "backend/cuda/packed_slots.cuh"
#include "backend/cuda/product_output.cuh"
#include "backend/cuda/weight_stream.cuh"

/// Weights come as in skinny_matmul.cu: each warp copies its own columns of a tile's rows into its
/// own part of a ring, and each lane multiplies the very codes that it copied.
///
/// Eight mma a unit, the same for all weight rows, take away what codes are more than numbers with
/// a sign (packed_slots.cuh).
namespace zi {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = 32 * kWarps;
constexpr int kTileRows = 32;
constexpr int kTileMma = kTileRows / 16;
constexpr int kBlockCols = kUnitCols * kWarps;  // of a step: a unit a warp
constexpr int kRowsOfLane = kTileRows / 8;
constexpr int kMostStages = 3;
constexpr int kMostSharedBytes = 227 << 10;  // of a block, on Hopper

/// A warp's part of a stage: codes as lanes copy them, scales of the rows, activations; and the
/// ring.
template <typename Slots, int kRows>
struct GemvRing {
  static constexpr int kScalesAt = kRowsOfLane * Slots::kPieces * 512;
  static constexpr int kXAt = kScalesAt + kTileRows * Slots::kScaleBytes;
  static constexpr int kXRowBytes = kUnitCols * 2;
  static constexpr int kWarpBytes = kXAt + kRows * kXRowBytes;
  static constexpr int kStageBytes = kWarpBytes * kWarps;
  /// Sums of a tile by all warps, twice: (kWarps, kRows, kTileRows).
  static constexpr int kPartials = kWarps * kRows * kTileRows;
  static constexpr int kPartialBytes = 2 * kPartials * static_cast<int>(sizeof(float));
  static constexpr int kStages =
      std::min(kMostStages, (kMostSharedBytes - kPartialBytes - 1024) / kStageBytes);
  static constexpr int kSharedBytes = kStages * kStageBytes + kPartialBytes;
  static_assert(kStages >= 2);
};

template <typename Output>
struct GemvArgs : StreamedProduct {
  Output out;
  RowScales scales;
};

/// A lane's place in the stream of weights of its block.
template <typename Slots, bool kMixed>
class GemvStream {
 public:
  __device__ GemvStream(const StreamedProduct& args, const RowScales& scales)
      : args_(args),
        row_scales_(scales),
        policy_(evict_first_policy()),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32),
        tile_(static_cast<int>(blockIdx.x)) {
    start_tile();
  }

  /// Starts the copies of the next step; none after the last tile. `codes` is the lane's place,
  /// `scales` that of a row of its number.
  __device__ void copy_step(std::uint32_t codes, std::uint32_t scales) {
    scales_.finish_step(row_scales_);
    if (tile_ >= args_.tiles) return;
#pragma unroll
    for (int p = 0; p < Slots::kPieces; ++p) {
      const bool there = left_ > p * 64;
#pragma unroll
      for (int r = 0; r < kRowsOfLane; ++r) {
        copy_weights_and_fetch_async(codes + (r * Slots::kPieces + p) * 512, row_[r] + p * 64,
                                     there, policy_);
      }
    }
    const bool there = left_ + lane_ % 4 * Slots::kPieceCols > 0;  // any of the warp's columns
    scales_.copy_step(scales, scale_row_, row_scales_, unit_, there);
#pragma unroll
    for (int r = 0; r < kRowsOfLane; ++r) row_[r] += kWarps * Slots::kUnitBytes;
    unit_ += kWarps;
    left_ -= kBlockCols;
    if (--steps_ == 0) {
      tile_ += static_cast<int>(gridDim.x);
      start_tile();
    }
  }

 private:
  __device__ void start_tile() {
    if (tile_ >= args_.tiles) return;
    left_ = args_.cols - warp_ * kUnitCols - lane_ % 4 * Slots::kPieceCols;
    steps_ = (args_.cols + kBlockCols - 1) / kBlockCols;
    const StreamedTile tile = tile_of<kTileRows, kMixed>(args_, tile_);
#pragma unroll
    for (int r = 0; r < kRowsOfLane; ++r) {
      // Nobody stores the sums of lanes after the last row.
      row_[r] = row_at<kMixed>(args_, tile, r * 8 + lane_ / 4) + warp_ * Slots::kUnitBytes +
                lane_ % 4 * 16;
    }
    scale_row_ = row_at<kMixed>(args_, tile, lane_);
    unit_ = warp_;
  }

  const StreamedProduct& args_;
  const RowScales& row_scales_;
  std::uint64_t policy_;
  int warp_;
  int lane_;
  int tile_;
  int left_;   // columns of the row from the lane's next one on
  int steps_;  // of the tile, not yet begun
  int unit_;   // the warp's next one
  const std::byte* row_[kRowsOfLane];
  const std::byte* scale_row_;
  typename Slots::Scales scales_;
};

/// Copies of a unit of the activations: 16 bytes of lanes 0 .. 15 for each row, zeros for what is
/// not there. One group of copies, with those of weights before it.
template <int kRows>
class GemvActivations {
 public:
  __device__ explicit GemvActivations(const StreamedProduct& args)
      : args_(args),
        first_(static_cast<int>(threadIdx.x) / 32 * kUnitCols +
               static_cast<int>(threadIdx.x) % 32 * 8),
        col_(first_) {}

  __device__ void copy_step(std::uint32_t to) {
    if (threadIdx.x % 32 < 16) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        ptx::copy_async_16(to + r * kUnitCols * 2,
                           args_.x + (static_cast<std::size_t>(r) * args_.cols + col_) * 2,
                           col_ < args_.cols && r < args_.rows);
      }
    }
    commit_copies();
    col_ += kBlockCols;
    // All warps take as many steps, the last ones perhaps of nothing.
    if (col_ - first_ >= args_.cols) col_ = first_;
  }

 private:
  const StreamedProduct& args_;
  int first_;
  int col_;
};

/// A lane's sums: [mma of the tile][set][upper, lower row] of its slots, and where slots are rows
/// of each of two.
template <typename Slots, int kSets>
using GemvSums = float[kTileMma][kSets][Slots::kRowSlots ? 4 : 2];

/// Adds the products of a step.
template <typename Slots, int kRows, int kSets>
__device__ __forceinline__ void multiply_unit(GemvSums<Slots, kSets>& sums,
                                              SlotFragments (&x)[kSets], const std::byte* stage,
                                              const bool (&has)[2]) {
  using Ring = GemvRing<Slots, kRows>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = lane / 4;
  const std::byte* const scales =
      stage + Ring::kScalesAt + row * Slots::kScaleBytes + Slots::scales_at(lane % 4);
  const std::byte* const x_row =
      stage + Ring::kXAt + Slots::row_of(row) * Ring::kXRowBytes + lane % 4 * Slots::kPieceCols * 2;
  constexpr int kChains = kSets == 1 ? 2 : 1;  // of mma, where registers hold two
  float taken[kSets][kChains][4] = {};
#pragma unroll
  for (int set = 0; set < kSets; ++set) {
    load_slots<Slots>(x[set], x_row + set * Slots::kRowsOfSet * Ring::kXRowBytes, has);
    if constexpr (Slots::kTakenEven != 0) {
      const std::uint32_t a[4] = {Slots::kTakenEven, Slots::kTakenEven, Slots::kTakenOdd,
                                  Slots::kTakenOdd};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        ptx::multiply_add<__nv_bfloat16>(taken[set][i % kChains], a, x[set][i][0], x[set][i][1]);
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kTileMma; ++m) {
    uint4 codes[2][Slots::kPieces];
    float scale[2][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto* const own = reinterpret_cast<const uint4*>(stage) + lane;
#pragma unroll
      for (int p = 0; p < Slots::kPieces; ++p) {
        codes[half][p] = own[((2 * m + half) * Slots::kPieces + p) * 32];
      }
      const std::byte* const own_scales = scales + (2 * m + half) * 8 * Slots::kScaleBytes;
      if constexpr (Slots::kRowSlots) {
        scale[half][0] = *reinterpret_cast<const float*>(own_scales) * Slots::kFactor;
      } else {
        const std::uint32_t pair = scale_pair(*reinterpret_cast<const std::uint16_t*>(own_scales));
        scale[half][0] = __uint_as_float(pair << 16);
        scale[half][1] = __uint_as_float(pair & 0xffff0000u);
      }
    }
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      float of[kChains][4] = {};
#pragma unroll
      for (int p = 0; p < Slots::kPieces; ++p) {
        Slots::add(of, codes[0][p], codes[1][p], p, x[set]);
      }
      auto& to = sums[m][set];
      float all[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        all[i] = of[0][i] + taken[set][0][i];
        for (int c = 1; c < kChains; ++c) all[i] += of[c][i] + taken[set][c][i];
      }
      if constexpr (Slots::kRowSlots) {
#pragma unroll
        for (int i = 0; i < 4; ++i) to[i] = fmaf(scale[i / 2][0], all[i], to[i]);
      } else {
        to[0] = fmaf(scale[0][1], all[1], fmaf(scale[0][0], all[0], to[0]));
        to[1] = fmaf(scale[1][1], all[3], fmaf(scale[1][0], all[2], to[1]));
      }
    }
  }
}

/// Adds the sums of all lanes and warps, in their order, and stores the tile. `partials` are those
/// of every second tile.
template <typename Slots, int kRows, int kSets, bool kMixed, typename Stores>
__device__ __forceinline__ void store_tile(const StreamedProduct& args, const Stores& stores,
                                           int tile, float* partials,
                                           const GemvSums<Slots, kSets>& sums) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto put = [&](int row, int m, int half, float sum) {
    if (row < kRows) {
      partials[(warp * kRows + row) * kTileRows + 16 * m + 8 * half + lane / 4] = sum;
    }
  };
#pragma unroll
  for (int m = 0; m < kTileMma; ++m) {
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int first_row = set * Slots::kRowsOfSet;
        if constexpr (Slots::kRowSlots) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            put(first_row + lane % 4 * 2 + c, m, half, sums[m][set][2 * half + c]);
          }
        } else {
          constexpr int kLanesOfRow = 4 / Slots::kRowsOfSet;  // that hold its slots
          float sum = sums[m][set][half];
#pragma unroll
          for (int lanes = 1; lanes < kLanesOfRow; lanes *= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
          }
          if (lane % kLanesOfRow == 0) put(first_row + lane % 4 / kLanesOfRow, m, half, sum);
        }
      }
    }
  }
  // The last tile's are read by now: a warp that comes here has passed the barrier after it.
  __syncthreads();
  if (warp >= args.rows) return;  // a warp a row
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += partials[(w * kRows + warp) * kTileRows + lane];
  const StreamedTile of = tile_of<kTileRows, kMixed>(args, tile);
  if constexpr (kMixed) {
    const float up = __shfl_xor_sync(0xffffffffu, sum, 8);
    if (lane % 16 < 8) stores.store(warp, of.row + lane / 16 * 8 + lane % 8, sum, up);
  } else {
    const TileColumns columns = columns_of(args, of);
    stores.store(warp, columns.first + lane, columns.limit, sum);
  }
}

/// Up to kRows rows; as many blocks as the device runs at once, or one a tile.
template <typename Slots, int kRows, typename Output>
__global__ void __launch_bounds__(kThreads, 1)
    gemv_kernel(const __grid_constant__ GemvArgs<Output> args) {
  using Ring = GemvRing<Slots, kRows>;
  using Stores = OutputStores<__nv_bfloat16, kRows, Output>;
  constexpr int kColumns = kTileRows / (Output::kMixed ? 2 : 1);  // of a tile
  constexpr int kSets = (kRows + Slots::kRowsOfSet - 1) / Slots::kRowsOfSet;
  constexpr std::uint32_t kStageBytes = Ring::kStageBytes;
  __shared__ typename Stores::Shared stores_shared;
  extern __shared__ __align__(kLineBytes) uint4 memory[];
  auto* const ring = reinterpret_cast<std::byte*>(memory);
  auto* const partials = reinterpret_cast<float*>(ring + Ring::kStages * Ring::kStageBytes);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::byte* const own = ring + static_cast<int>(threadIdx.x) / 32 * Ring::kWarpBytes;
  // Through a shuffle, as in wide_matmul.cu.
  const std::uint32_t first = __shfl_sync(0xffffffffu, ptx::shared_address(own) + lane * 16, lane);
  const std::uint32_t last = first + (Ring::kStages - 1) * kStageBytes;
  const std::uint32_t to_scales =
      ptx::shared_address(own) + Ring::kScalesAt + lane * Slots::kScaleBytes - first;
  const std::uint32_t to_x = Ring::kXAt;

  GemvStream<Slots, Output::kMixed> weights(args, args.scales);
  // Weights were there before the kernels that may still run: only activations wait for those.
  for (std::uint32_t to = first; to <= last; to += kStageBytes) {
    weights.copy_step(to, to + to_scales);
  }
  const Stores stores(args.out, stores_shared);
  let_next_start();
  stores.prepare(args.rows, static_cast<int>(blockIdx.x) * kColumns + lane % kColumns);
  wait_for_previous();
  GemvActivations<kRows> activations(args);
  for (std::uint32_t to = first; to <= last; to += kStageBytes) {
    activations.copy_step(to + to_x);  // the first with all weights so far
  }

  // The column of mma that a lane gives is its number divided by four.
  const bool has[2] = {Slots::has(lane / 4, lane % 4, 0) && Slots::row_of(lane / 4) < kRows,
                       Slots::has(lane / 4, lane % 4, 1) && Slots::row_of(lane / 4) < kRows};
  SlotFragments x[kSets] = {};
  const int steps = (args.cols + kBlockCols - 1) / kBlockCols;
  std::uint32_t to = first;
  const std::byte* stage = own;
  int odd = 0;
  for (int tile = static_cast<int>(blockIdx.x); tile < args.tiles;
       tile += static_cast<int>(gridDim.x)) {
    GemvSums<Slots, kSets> sums = {};
    for (int step = 0; step < steps; ++step) {
      wait_for_all_copies_but<Ring::kStages - 1>();
      __syncwarp();  // the copies of all lanes have arrived
      multiply_unit<Slots, kRows, kSets>(sums, x, stage, has);
      __syncwarp();  // and are used up
      weights.copy_step(to, to + to_scales);
      activations.copy_step(to + to_x);
      to = to == last ? first : to + kStageBytes;
      stage += Ring::kStageBytes;
      if (stage == own + Ring::kStages * Ring::kStageBytes) stage = own;
    }
    store_tile<Slots, kRows, kSets, Output::kMixed>(args, stores, tile,
                                                    partials + odd * Ring::kPartials, sums);
    odd ^= 1;
  }
}

template <typename Output>
constexpr bool kHasGroupKernels =
    std::is_same_v<Output, SumsOutput> || std::is_same_v<Output, GateOutput<Activation::kSilu>>;

/// Calls call(kernel, its shared bytes) with the kernel for a format, an output and up to so many
/// rows.
template <typename Output, typename Call>
void with_kernel(const WeightFormat& format, std::int64_t rows, const Call& call) {
  const auto chosen = [&]<typename Slots, int kRows>() {
    call(gemv_kernel<Slots, kRows, Output>, GemvRing<Slots, kRows>::kSharedBytes);
  };
  const auto of_bytes = [&]<typename Slots>() {
    if (rows <= 2) {
      rows <= 1 ? chosen.template operator()<Slots, 1>() : chosen.template operator()<Slots, 2>();
    } else {
      chosen.template operator()<Slots, 4>();
    }
  };
  if (format == kInt4Weights) {
    chosen.template operator()<Int4Slots, 1>();
  } else if (format == kInt8Weights) {
    of_bytes.template operator()<Int8Slots>();
  } else if constexpr (kHasGroupKernels<Output>) {
    if (format.kind == WeightFormat::Kind::kInt8) {
      of_bytes.template operator()<ByteGroupSlots<WeightFormat::Kind::kInt8>>();
    } else {
      of_bytes.template operator()<ByteGroupSlots<WeightFormat::Kind::kFloat8>>();
    }
  }
}

/// Codes of a byte, for which a unit has one scale and no zero points.
bool has_row_slots(const WeightFormat& format) {
  return (format.kind == WeightFormat::Kind::kInt8 || format.kind == WeightFormat::Kind::kFloat8) &&
         format.scale != ScaleType::kFloat8 && !format.zeros &&
         (format.group == 0 || (format.group >= kUnitCols &&
                                std::has_single_bit(static_cast<std::uint32_t>(format.group))));
}

}  // namespace

PackedGemv::PackedGemv() {
  int device = 0, multiprocessors = 0, most_shared = 0;
  ZI_CUDA(cudaGetDevice(&device));
  ZI_CUDA(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  ZI_CUDA(cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  if (most_shared < kMostSharedBytes) return;
  for_each_output([]<typename Output>(const Output&) {
    using Kind = WeightFormat::Kind;
    for (const auto& format :
         {kInt8Weights, kInt4Weights, WeightFormat(Kind::kInt8, ScaleType::kFloat32, 0),
          WeightFormat(Kind::kFloat8, ScaleType::kFloat32, 0)}) {
      for (const std::int64_t rows : {1, 2, 4}) {
        with_kernel<Output>(format, rows, [](auto* kernel, int bytes) {
          ZI_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
          ZI_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                       cudaSharedmemCarveoutMaxShared));
        });
      }
    }
  });
  blocks_ = multiprocessors;
}

bool PackedGemv::fits(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
                      const ProductOutput& output) const {
  const WeightFormat& format = w.format();
  const bool has_kernels = std::visit(
      [&]<typename Output>(const Output&) {
        return format == kInt4Weights || format == kInt8Weights ||
               (kHasGroupKernels<Output> && has_row_slots(format));
      },
      output);
  return a_dtype == DType::kBFloat16 && has_kernels && rows >= 1 &&
         rows <= (format == kInt4Weights ? kMaxInt4Rows : kMaxByteRows) && blocks_ > 0 &&
         can_stream_rows(a, w);
}

void PackedGemv::run(const void* a, std::int64_t rows, const Matrices& w,
                     const ProductOutput& output, cudaStream_t stream) const {
  std::visit(
      [&]<typename Output>(const Output& out) {
        with_kernel<Output>(w.format(), rows, [&](auto* kernel, int bytes) {
          const GemvArgs<Output> args{{streamed(w, a, rows, kTileRows, Output::kMixed)},
                                      out,
                                      row_scales(w.format(), w.cols())};
          launch_early(kernel, static_cast<unsigned>(std::min(args.tiles, blocks_)), kThreads,
                       static_cast<std::size_t>(bytes), stream, args);
        });
      },
      output);
}

}  // namespace zi
