#include <algorithm>
#include <cstddef>
#include <limits>

#include "backend/cuda/cuda_attention_mma.cuh"
#include "backend/cuda/cuda_support.h"
#include "backend/cuda/element.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/product_output.cuh"
#include "backend/cuda/skinny_matmul.h"
#include "backend/cuda/weight_stream.cuh"
#include "zero_infer/bytes.h"

/// Weights are streamed once, past the L1 cache and marked to leave L2 first, into a ring in shared
/// memory deep enough to cover the memory's latency. A block takes tiles of weight rows in turn;
/// its warps share the columns, kStepCols each in every step, and their sums meet at the tile's end
/// while the next tile's weights are already on their way.
///
/// Weights are the mma's A (16 weight rows), activations its B (8 rows). The order of a contraction
/// is free, so lane 4 g + t takes 8 neighbouring columns from 8 t of weight rows g and g + 8, and
/// of activation row g: elements 0 .. 3 feed one mma, 4 .. 7 another, where columns 8 t, 8 t + 1
/// stand in for 2 t, 2 t + 1 and the next two for 2 t + 8, 2 t + 9. Each lane thus multiplies the
/// very bytes that it copied: the ring needs no barrier and no shuffle, and is free of bank
/// conflicts.
///
/// (Norms made by every block for itself, in the kernel of the product behind them, were slower
/// than a kernel for each: the next product's weights are then not read meanwhile.)
namespace zi {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kStepCols = 64;  // a line of 128 bytes of each row
constexpr int kBlockCols = kStepCols * kWarps;
constexpr int kHalves = kStepCols / 32;
/// Two blocks fit into a multiprocessor of 228 KiB.
constexpr int kBlocksOfMultiprocessor = 2;

/// Tiles of 32 or 16 weight rows, for which a ring has 3 or 6 stages. A tile's rows do not change
/// the order of its sums.
template <int kTileRowsOf>
struct Tile {
  static constexpr int kTileRows = kTileRowsOf;
  static constexpr int kStages = 96 / kTileRows;
  static constexpr int kRowsOfLane = kTileRows / 8;
  static constexpr int kPiecesOfLane = kRowsOfLane * kHalves;  // of 16 bytes, a step
  static constexpr int kWarpPieces = kPiecesOfLane * 32;
  static constexpr int kStagePieces = kWarpPieces * kWarps;

  /// The ring, and the sums of one tile by all warps: (kWarps, 8 groups, kTileRows).
  static constexpr std::size_t shared_bytes(int groups) {
    return sizeof(uint4) * kStages * kStagePieces +
           sizeof(float) * static_cast<std::size_t>(kWarps * 8 * groups * kTileRows);
  }
};

template <typename Output>
struct SkinnyArgs : StreamedProduct {
  Output out;
};

/// A lane's place in the stream of weights of its block.
template <typename TileOf, bool kMixed>
class WeightStream {
  static constexpr int kTileRows = TileOf::kTileRows;
  static constexpr int kRowsOfLane = TileOf::kRowsOfLane;

 public:
  /// `col` is the lane's first column.
  __device__ WeightStream(const StreamedProduct& args, int first_row_of_lane, int col)
      : args_(args),
        policy_(evict_first_policy()),
        first_row_(first_row_of_lane),
        first_col_(col),
        tile_(static_cast<int>(blockIdx.x)) {
    start_tile();
  }

  /// Starts the copies of the next step to the lane's pieces of a stage, one group; an empty one
  /// after the last tile.
  __device__ void copy_step(std::uint32_t stage) {
    if (tile_ < args_.tiles) {
#pragma unroll
      for (int r = 0; r < kRowsOfLane; ++r) {
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
          copy_weights_and_fetch_async(stage + (r * kHalves + h) * 32 * 16, row_[r] + h * 64,
                                       col_ + h * 32 < args_.cols, policy_);
        }
        row_[r] += kBlockCols * 2;
      }
      col_ += kBlockCols;
      if (col_ - first_col_ >= args_.cols) {
        tile_ += static_cast<int>(gridDim.x);
        start_tile();
      }
    }
    commit_copies();
  }

 private:
  __device__ void start_tile() {
    if (tile_ >= args_.tiles) return;
    col_ = first_col_;
    const StreamedTile tile = tile_of<kTileRows, kMixed>(args_, tile_);
#pragma unroll
    for (int r = 0; r < kRowsOfLane; ++r) {
      // Nobody stores the sums of lanes after the last row.
      row_[r] = row_at<kMixed>(args_, tile, r * 8 + first_row_) + col_ * 2;
    }
  }

  const StreamedProduct& args_;
  std::uint64_t policy_;
  int first_row_;
  int first_col_;
  int tile_;
  int col_;
  const std::byte* row_[kRowsOfLane];
};

/// The lane's activations of one step, at `col` and 32 columns on.
template <int kGroups>
__device__ inline void load_activations(uint4 (&x)[kGroups][kHalves], const StreamedProduct& args,
                                        int row, int col) {
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const std::byte* const from =
        args.x + (static_cast<std::size_t>(row + 8 * group) * args.cols + col) * 2;
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      x[group][h] = make_uint4(0, 0, 0, 0);
      if (row + 8 * group < args.rows && col + h * 32 < args.cols) {
        x[group][h] = *reinterpret_cast<const uint4*>(from + h * 64);
      }
    }
  }
}

/// sums[m] of weight rows 16 m .. 16 m + 15 (8 kGroups activation rows) += the step's products.
template <typename T, int kGroups, int kTileRows>
__device__ inline void multiply_step(float (&sums)[kTileRows / 16][kGroups][4], const uint4* pieces,
                                     const uint4 (&x)[kGroups][kHalves]) {
#pragma unroll
  for (int h = 0; h < kHalves; ++h) {
#pragma unroll
    for (int m = 0; m < kTileRows / 16; ++m) {
      const uint4 upper = pieces[(2 * m * kHalves + h) * 32];
      const uint4 lower = pieces[((2 * m + 1) * kHalves + h) * 32];
      const std::uint32_t front[4] = {upper.x, lower.x, upper.y, lower.y};
      const std::uint32_t back[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        ptx::multiply_add<T>(sums[m][group], front, x[group][h].x, x[group][h].y);
        ptx::multiply_add<T>(sums[m][group], back, x[group][h].z, x[group][h].w);
      }
    }
  }
}

/// Exchanges the weight rows of a tile so that a warp's stores of its sums hit all banks, or half
/// of them where a tile has 16 rows.
template <int kTileRows>
__device__ inline int partial_place(int x_row, int weight_row) {
  return x_row * kTileRows + (weight_row ^ (x_row >> 1 & (kTileRows / 8 - 1)) << 3);
}

/// Adds the sums of all warps, in their order, and stores the tile.
template <int kGroups, int kTileRows, bool kMixed, typename Stores>
__device__ inline void store_tile(const StreamedProduct& args, const Stores& stores, int tile,
                                  float* partials,
                                  const float (&sums)[kTileRows / 16][kGroups][4]) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  constexpr int kWarpFloats = 8 * kGroups * kTileRows;
  __syncthreads();  // all have read the previous tile's
#pragma unroll
  for (int m = 0; m < kTileRows / 16; ++m) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int x_row = 8 * group + 2 * (lane % 4) + i % 2;
        const int weight_row = 16 * m + 8 * (i / 2) + lane / 4;
        partials[warp * kWarpFloats + partial_place<kTileRows>(x_row, weight_row)] =
            sums[m][group][i];
      }
    }
  }
  __syncthreads();
  const StreamedTile of = tile_of<kTileRows, kMixed>(args, tile);
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const int x_row = 8 * group + warp;
    if (x_row >= args.rows) continue;  // the whole warp
    float sum = 0;
    const bool has_row = lane < kTileRows;
    if (has_row) {
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        sum += partials[w * kWarpFloats + partial_place<kTileRows>(x_row, lane)];
      }
    }
    if constexpr (kMixed) {
      const float up = __shfl_xor_sync(0xffffffffu, sum, 8);
      if (has_row && lane % 16 < 8) {
        stores.store(x_row, of.row + lane / 16 * 8 + lane % 8, sum, up);
      }
    } else if (has_row) {
      const TileColumns columns = columns_of(args, of);
      stores.store(x_row, columns.first + lane, columns.limit, sum);
    }
  }
}

/// Up to 8 kGroups rows; as many blocks as the device runs at once, or one a tile.
template <typename T, int kGroups, typename TileOf, typename Output>
__global__ void __launch_bounds__(kThreads, kBlocksOfMultiprocessor)
    skinny_kernel(const __grid_constant__ SkinnyArgs<Output> args) {
  using Stores = OutputStores<T, 8 * kGroups, Output>;
  constexpr int kTileRows = TileOf::kTileRows;
  constexpr int kStages = TileOf::kStages;
  constexpr int kStagePieces = TileOf::kStagePieces;
  constexpr int kColumns = kTileRows / (Output::kMixed ? 2 : 1);  // of a tile
  __shared__ typename Stores::Shared stores_shared;
  extern __shared__ __align__(kLineBytes) uint4 ring[];  // (kStages, kWarps, kPiecesOfLane, 32)
  auto* const partials = reinterpret_cast<float*>(ring + kStages * kStagePieces);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int x_row = lane / 4;
  const int first_col = warp * kStepCols + lane % 4 * 8;

  const uint4* const pieces = ring + warp * TileOf::kWarpPieces + lane;
  const std::uint32_t pieces_address = ptx::shared_address(pieces);
  WeightStream<TileOf, Output::kMixed> weights(args, lane / 4, first_col);
  // Weights were there before the kernels that may still run: only activations wait for those.
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) {
    weights.copy_step(pieces_address + stage * kStagePieces * 16);
  }
  const Stores stores(args.out, stores_shared);
  let_next_start();
  stores.prepare(args.rows, static_cast<int>(blockIdx.x) * kColumns + lane % kColumns);
  wait_for_previous();

  uint4 x[kGroups][kHalves];
  load_activations<kGroups>(x, args, x_row, first_col);
  int stage = 0;
  for (int tile = static_cast<int>(blockIdx.x); tile < args.tiles;
       tile += static_cast<int>(gridDim.x)) {
    float sums[kTileRows / 16][kGroups][4] = {};
    for (int col = 0; col < args.cols; col += kBlockCols) {
      // The next step's, which after the last step is the next tile's first.
      uint4 next[kGroups][kHalves];
      const int next_col = col + kBlockCols < args.cols ? col + kBlockCols : 0;
      load_activations<kGroups>(next, args, x_row, next_col + first_col);
      wait_for_all_copies_but<kStages - 1>();
      multiply_step<T, kGroups, kTileRows>(sums, pieces + stage * kStagePieces, x);
      __syncwarp();  // the pieces are read before they are overwritten
      weights.copy_step(pieces_address + stage * kStagePieces * 16);
      stage = stage + 1 < kStages ? stage + 1 : 0;
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
#pragma unroll
        for (int h = 0; h < kHalves; ++h) x[group][h] = next[group][h];
      }
    }
    store_tile<kGroups, kTileRows, Output::kMixed>(args, stores, tile, partials, sums);
  }
}

/// Calls call(kernel, bytes of shared memory) with the kernel for up to 8 `groups` rows.
template <typename Output, typename Call>
void with_kernel(DType dtype, int groups, int tile_rows, const Call& call) {
  const auto of = [&]<typename T, int kGroups, typename TileOf>() {
    call(skinny_kernel<T, kGroups, TileOf, Output>, TileOf::shared_bytes(kGroups));
  };
  const auto of_type = [&]<typename T>() {
    if (tile_rows == 16) {
      groups == 1 ? of.template operator()<T, 1, Tile<16>>()
                  : of.template operator()<T, 2, Tile<16>>();
    } else {
      groups == 1 ? of.template operator()<T, 1, Tile<32>>()
                  : of.template operator()<T, 2, Tile<32>>();
    }
  };
  if (dtype == DType::kBFloat16) {
    of_type.template operator()<__nv_bfloat16>();
  } else {
    of_type.template operator()<__half>();
  }
}

/// Lets the kernels have their shared memory; how many blocks of any of them a multiprocessor
/// holds.
template <typename Output>
int prepare_kernels(int groups) {
  int fewest = std::numeric_limits<int>::max();
  const auto prepare = [&](auto* kernel, std::size_t bytes) {
    ZI_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(bytes)));
    ZI_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared));
    int resident = 0;
    ZI_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kThreads, bytes));
    fewest = std::min(fewest, resident);
  };
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (const int tile_rows : {16, 32}) with_kernel<Output>(dtype, groups, tile_rows, prepare);
  }
  return fewest;
}

/// Rows of a tile where `blocks` run at once: 16 if the block with the most rows then has fewer of
/// them. Not for short rows, unless there are tiles for a quarter of the blocks alone: there, two
/// blocks on a multiprocessor take longer than one with a tile of 32.
int tile_rows_for(const Matrices& w, int blocks) {
  constexpr std::int64_t kShortCols = 2048;
  std::int64_t rows = 0;
  for (std::size_t i = 0; i < w.size(); ++i) rows += w[i].padded_rows();
  const auto most_rows = [&](int tile_rows) {
    return ceil_div(ceil_div(rows, tile_rows), blocks) * tile_rows;
  };
  const bool few = ceil_div(rows, 32) <= blocks / 4;
  return most_rows(16) < most_rows(32) && (few || w.cols() >= kShortCols) ? 16 : 32;
}

}  // namespace

SkinnyMatmul::SkinnyMatmul() {
  int device = 0, multiprocessors = 0, most_shared = 0;
  ZI_CUDA(cudaGetDevice(&device));
  ZI_CUDA(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  ZI_CUDA(cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  for (const int groups : {1, 2}) {
    // The rows of QkvOutput's table are next to it.
    constexpr std::size_t kFixed = kMaxRows * sizeof(void*);
    if (static_cast<std::size_t>(most_shared) < Tile<32>::shared_bytes(groups) + kFixed) continue;
    int fewest = std::numeric_limits<int>::max();
    for_each_output([&]<typename Output>(const Output&) {
      fewest = std::min(fewest, prepare_kernels<Output>(groups));
    });
    blocks_[groups - 1] = multiprocessors * fewest;
  }
}

bool SkinnyMatmul::fits(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w) const {
  return rows >= 1 && rows <= kMaxRows && blocks_[rows <= 8 ? 0 : 1] > 0 &&
         can_stream(a, a_dtype, w);
}

void SkinnyMatmul::run(const void* a, std::int64_t rows, const Matrices& w,
                       const ProductOutput& output, cudaStream_t stream) const {
  const int groups = rows <= 8 ? 1 : 2;
  std::visit(
      [&]<typename Output>(const Output& out) {
        const int most = blocks_[groups - 1];
        const int tile_rows = tile_rows_for(w, most);
        const SkinnyArgs<Output> args{streamed(w, a, rows, tile_rows, Output::kMixed), out};
        with_kernel<Output>(
            w.format().dtype, groups, tile_rows, [&](auto* kernel, std::size_t bytes) {
              launch_early(kernel, static_cast<unsigned>(std::min(args.tiles, most)), kThreads,
                           bytes, stream, args);
            });
      },
      output);
}

}  // namespace zi
