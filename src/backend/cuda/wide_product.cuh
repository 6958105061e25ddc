#pragma once

#include <algorithm>
#include <utility>

#include "backend/cuda/cluster_counts.h"
#include "backend/cuda/cuda_attention_mma.cuh"
#include "backend/cuda/cuda_support.h"
#include "backend/cuda/hopper_mma.cuh"
#include "backend/cuda/product_output.cuh"
#include "backend/cuda/weight_stream.cuh"

/// What the kernels for products of up to some dozen rows on Hopper share: a block takes tiles of
/// kWideTileRows weight rows in turn, each warpgroup half of a tile's rows. Where there are fewer
/// tiles than places for blocks, a cluster of blocks divides a tile's columns, a step each in turn
/// so that the memory is read in longer pieces of a row, and adds its sums in the order of the
/// blocks.
namespace zi {

inline constexpr int kWideThreads = 256;
inline constexpr int kWideGroupRows = 64;  // of a warpgroup
inline constexpr int kWideTileRows = kWideThreads / 128 * kWideGroupRows;
/// Of the ring in shared memory.
inline constexpr int kRingAlignment = 1024;

struct WideProduct : StreamedProduct {
  int splits;  // blocks of a cluster
};

template <typename Output>
struct WideArgs : WideProduct {
  Output out;
};

/// What a block multiplies: tiles from `tile` on, every `stride`-th, each in `steps` steps of
/// `step_cols` columns from `begin` on, `advance` apart.
struct WideWork {
  __device__ WideWork(const WideProduct& args, int step_cols)
      : split(static_cast<int>(blockIdx.x) % args.splits),
        tile(static_cast<int>(blockIdx.x) / args.splits),
        stride(static_cast<int>(gridDim.x) / args.splits),
        begin(split * step_cols),
        advance(args.splits * step_cols),
        steps((max(args.cols - begin, 0) + advance - 1) / advance),
        all_steps((args.tiles - tile + stride - 1) / stride * steps) {}

  int split, tile, stride, begin, advance, steps, all_steps;
};

/// Calls use(activation row, weight row of the tile, sum) for each of the thread's sums.
template <int kRows, typename Use>
__device__ inline void for_each_sum(const float (&sums)[kRows / 2], const Use& use) {
  const int warp = static_cast<int>(threadIdx.x) / 32;  // four of a warpgroup, 16 rows each
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < kRows / 2; ++i) {
    use(i / 4 * 8 + lane % 4 * 2 + i % 2, warp * 16 + i / 2 % 2 * 8 + lane / 4, sums[i]);
  }
}

/// Those of the lane whose number differs in the bits of `lanes`.
__device__ inline float4 exchange_four(float4 v, int lanes) {
  return make_float4(
      __shfl_xor_sync(0xffffffffu, v.x, lanes), __shfl_xor_sync(0xffffffffu, v.y, lanes),
      __shfl_xor_sync(0xffffffffu, v.z, lanes), __shfl_xor_sync(0xffffffffu, v.w, lanes));
}

/// Adds the sums of the cluster's kSplits blocks and stores them, each block some activation rows.
template <int kRows, int kSplits, bool kMixed, typename Stores>
__device__ inline void store_sum_of_blocks(const WideProduct& args, const WideWork& work,
                                           const Stores& stores, std::uint32_t shared,
                                           float* partials, const float (&sums)[kRows / 2]) {
  constexpr int kRowsOfRound = kWideThreads / 32 * kSplits;  // one a warp
  constexpr int kRounds = (kRows + kRowsOfRound - 1) / kRowsOfRound;
  // Weight rows are exchanged so that a warp's stores hit all banks.
  const auto place = [](int x_row, int weight_row) {
    return x_row * kWideTileRows + (weight_row ^ (x_row >> 1 & 3) << 3);
  };
  for_each_sum<kRows>(sums, [&](int x_row, int weight_row, float sum) {
    partials[place(x_row, weight_row)] = sum;
  });
  ptx::arrive_at_cluster_barrier();
  ptx::wait_at_cluster_barrier();
  const int first_row = work.split + static_cast<int>(threadIdx.x) / 32 * kSplits;
  const int row_col = static_cast<int>(threadIdx.x) % 32 * 4;
  const StreamedTile tile = tile_of<kWideTileRows, kMixed>(args, work.tile);

  float4 parts[kRounds][kSplits];  // all on their way before the first is waited for
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int x_row = first_row + round * kRowsOfRound;
    if (x_row >= args.rows) break;
    const auto at = static_cast<std::uint32_t>(place(x_row, row_col)) * 4;
#pragma unroll
    for (int block = 0; block < kSplits; ++block) {
      parts[round][block] = ptx::load_from_block(shared + at, block);
    }
  }
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    if (first_row + round * kRowsOfRound >= args.rows) break;
#pragma unroll
    for (int block = 1; block < kSplits; ++block) {
      parts[round][0].x += parts[round][block].x;
      parts[round][0].y += parts[round][block].y;
      parts[round][0].z += parts[round][block].z;
      parts[round][0].w += parts[round][block].w;
    }
  }
  ptx::arrive_at_cluster_barrier();
  const bool fours = stores.takes_fours();
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int x_row = first_row + round * kRowsOfRound;
    if (x_row >= args.rows) break;
    const float4 sum = parts[round][0];
    const float values[4] = {sum.x, sum.y, sum.z, sum.w};
    if constexpr (kMixed) {
      const float4 up = exchange_four(sum, 2);
      if (row_col % 16 >= 8) continue;
      const int column = tile.row + row_col / 16 * 8 + row_col % 8;
      const float ups[4] = {up.x, up.y, up.z, up.w};
      if (fours) {
        stores.store_four(x_row, column, sum, up);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) stores.store(x_row, column + i, values[i], ups[i]);
      }
    } else {
      const TileColumns columns = columns_of(args, tile);
      const int column = columns.first + row_col;
      if (fours) {
        stores.store_four(x_row, column, columns.limit, sum);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) stores.store(x_row, column + i, columns.limit, values[i]);
      }
    }
  }
  ptx::wait_at_cluster_barrier();  // no block is gone before its sums are read
}

/// Stores the sums of a tile that no other block has a part of.
template <int kRows, bool kMixed, typename Stores>
__device__ inline void store_own_sums(const WideProduct& args, const Stores& stores, int tile,
                                      const float (&sums)[kRows / 2]) {
  const StreamedTile of = tile_of<kWideTileRows, kMixed>(args, tile);
  if constexpr (kMixed) {
    // A thread holds eight rows on from a sum of the gate that of the other matrix.
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int column = of.row + static_cast<int>(threadIdx.x) / 32 * 8 + lane / 4;
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) {
      const int x_row = i / 4 * 8 + lane % 4 * 2 + i % 2;
      if (i / 2 % 2 == 0 && x_row < args.rows) {
        stores.store(x_row, column, sums[i], sums[i + 2]);
      }
    }
  } else {
    const TileColumns columns = columns_of(args, of);
    for_each_sum<kRows>(sums, [&](int x_row, int weight_row, float sum) {
      if (x_row < args.rows) {
        stores.store(x_row, columns.first + weight_row, columns.limit, sum);
      }
    });
  }
}

/// Adds the sums of a cluster's blocks, in their order, through their shared memories, and stores
/// them. `shared` is where the calling block's `partials` are.
template <int kRows, bool kMixed, typename Stores>
__device__ inline void store_sums_of_cluster(const WideProduct& args, const WideWork& work,
                                             const Stores& stores, std::uint32_t shared,
                                             float* partials, const float (&sums)[kRows / 2]) {
  const auto with = [&]<int... kOthers>(std::integer_sequence<int, kOthers...>) {
    ((args.splits == kOthers + 2 ? store_sum_of_blocks<kRows, kOthers + 2, kMixed>(
                                       args, work, stores, shared, partials, sums)
                                 : void()),
     ...);
  };
  with(std::make_integer_sequence<int, kMostSplits - 1>());
}

/// What the start and the end of a block take, in columns that it could multiply meanwhile.
inline constexpr int kColsOfStart = 1024;

/// How many blocks share the columns of a tile, each `fewest_cols` at least: as many as end first.
/// Where they have no room at once, the device runs them in waves; a block of its own tiles goes on
/// from one to the next without a new start.
inline int cluster_splits(const ClusterCounts& clusters, int tiles, int cols, int fewest_cols) {
  int best = 1;
  std::int64_t least = 0;
  for (int splits = 1; splits <= kMostSplits; ++splits) {
    const int at_once = clusters[static_cast<std::size_t>(splits)];
    if (at_once == 0 || (splits > 1 && cols < splits * fewest_cols)) continue;
    const std::int64_t waves = (tiles + at_once - 1) / at_once;
    const std::int64_t cols_each = (cols + splits - 1) / splits;
    const std::int64_t takes =
        splits == 1 ? waves * cols_each + kColsOfStart : waves * (cols_each + kColsOfStart);
    if (splits > 1 && takes >= least) continue;
    best = splits;
    least = takes;
  }
  return best;
}

/// Of a kernel with so much shared memory.
inline ClusterCounts clusters_at_once(const void* kernel, int shared_bytes) {
  ClusterCounts clusters{};
  for (int blocks = 1; blocks <= kMostSplits; ++blocks) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = static_cast<unsigned>(blocks);
    config.blockDim = kWideThreads;
    config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
    config.attrs = &attribute;
    config.numAttrs = 1;
    ZI_CUDA(cudaOccupancyMaxActiveClusters(&clusters[static_cast<std::size_t>(blocks)], kernel,
                                           &config));
  }
  return clusters;
}

/// Lets a kernel have its shared memory.
inline void allow_shared_memory(const void* kernel, int bytes) {
  ZI_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  ZI_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                               cudaSharedmemCarveoutMaxShared));
}

}  // namespace zi
