#include <algorithm>

#include "backend/cuda/cuda_attention_mma.cuh"
#include "backend/cuda/cuda_support.h"
#include "backend/cuda/hopper_mma.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/weight_stream.cuh"
#include "backend/cuda/wide_matmul.h"

/// A block takes tiles of kTileRows weight rows in turn, two blocks a multiprocessor. Weights, read
/// once, and the activations of the same columns come in steps of kStepCols columns into a ring in
/// shared memory, from which Hopper's matrix units take both; each warpgroup has half of the tile's
/// rows. Where there are fewer tiles than places for blocks, a cluster of blocks divides a tile's
/// columns and adds its sums in the order of the blocks through their shared memories.
namespace zi {
namespace {

constexpr int kThreads = 256;
constexpr int kGroupRows = 64;  // of a warpgroup
constexpr int kTileRows = kThreads / 128 * kGroupRows;
constexpr int kStepCols = 64;              // 128 bytes of each row
constexpr int kRowPieces = kStepCols / 8;  // of 16 bytes
constexpr int kRowsAtOnce = kThreads / kRowPieces;
constexpr int kWeightBytes = kTileRows * kStepCols * 2;  // of a stage

constexpr int kStages = 4;
constexpr int stage_bytes(int rows) { return kWeightBytes + rows * kStepCols * 2; }
constexpr int kAlignment = 1024;
constexpr int shared_bytes(int rows) { return kStages * stage_bytes(rows) + kAlignment; }

struct WideArgs : StreamedWeights {
  const std::byte* x;  // (rows, cols)
  float* y;            // (rows, ld)
  int rows;
  int splits;      // blocks of a cluster
  int split_cols;  // columns of each, in whole steps
};

/// What a block multiplies: tiles from `tile` on, every `stride`-th, each in `steps` steps of the
/// columns from `begin` to before `end`.
struct Work {
  __device__ explicit Work(const WideArgs& args)
      : split(static_cast<int>(blockIdx.x) % args.splits),
        tile(static_cast<int>(blockIdx.x) / args.splits),
        stride(static_cast<int>(gridDim.x) / args.splits),
        begin(split * args.split_cols),
        end(min(begin + args.split_cols, args.cols)),
        steps(max((end - begin + kStepCols - 1) / kStepCols, 0)),
        all_steps(((args.ld + kTileRows - 1) / kTileRows - tile + stride - 1) / stride * steps) {}

  int split, tile, stride, begin, end, steps, all_steps;
};

/// A thread's share of the copies of weights: a piece of each kRowsAtOnce-th row.
class WeightCopies {
 public:
  __device__ WeightCopies(const WideArgs& args, const Work& work)
      : args_(args), work_(work), policy_(evict_first_policy()), tile_(work.tile) {
    start_tile();
  }

  /// Starts those of the next step to a stage; none behind the last one.
  __device__ void copy_step(std::uint32_t stage) {
    if (done_ == work_.all_steps) return;
    const bool there = col_ < work_.end;
#pragma unroll
    for (int i = 0; i < kTileRows / kRowsAtOnce; ++i) {
      copy_weights_async(stage + i * kRowsAtOnce * 128, from_[i], there, policy_);
      from_[i] += kStepCols * 2;
    }
    col_ += kStepCols;
    ++done_;
    if (++step_ == work_.steps) {
      tile_ += work_.stride;
      start_tile();
    }
  }

 private:
  __device__ void start_tile() {
    step_ = 0;
    col_ = work_.begin + static_cast<int>(threadIdx.x) % kRowPieces * 8;
    const int row = tile_ * kTileRows + static_cast<int>(threadIdx.x) / kRowPieces;
#pragma unroll
    for (int i = 0; i < kTileRows / kRowsAtOnce; ++i) {
      // Nobody stores the sums of rows behind the last one.
      from_[i] = weight_at(args_, row + i * kRowsAtOnce, col_);
    }
  }

  const WideArgs& args_;
  const Work& work_;
  std::uint64_t policy_;
  int tile_;
  int step_ = 0;
  int done_ = 0;
  int col_ = 0;
  const std::byte* from_[kTileRows / kRowsAtOnce];
};

/// The same of activations: the columns of a tile again and again.
template <int kRows>
class ActivationCopies {
 public:
  __device__ ActivationCopies(const WideArgs& args, const Work& work)
      : args_(args),
        work_(work),
        row_(static_cast<int>(threadIdx.x) / kRowPieces),
        first_col_(work.begin + static_cast<int>(threadIdx.x) % kRowPieces * 8),
        from_(args.x + (static_cast<std::size_t>(row_) * args.cols + first_col_) * 2),
        stride_(static_cast<std::size_t>(kRowsAtOnce) * args.cols * 2) {}

  __device__ void copy_step(std::uint32_t stage) {
    if (done_ == work_.all_steps) return;
    const bool in_row = first_col_ + step_ * kStepCols < work_.end;
    const std::byte* from = from_ + static_cast<std::size_t>(step_) * (kStepCols * 2);
#pragma unroll
    for (int i = 0; i < kRows / kRowsAtOnce; ++i) {
      ptx::copy_async_16(stage + i * kRowsAtOnce * 128, from,
                         in_row && row_ + i * kRowsAtOnce < args_.rows);
      from += stride_;
    }
    ++done_;
    if (++step_ == work_.steps) step_ = 0;
  }

 private:
  const WideArgs& args_;
  const Work& work_;
  int row_;
  int first_col_;
  const std::byte* from_;
  std::size_t stride_;
  int step_ = 0;
  int done_ = 0;
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

/// Adds the sums of the cluster's blocks and stores them, each block some activation rows.
template <int kRows>
__device__ inline void store_sum_of_blocks(const WideArgs& args, const Work& work,
                                           std::uint32_t shared, float* partials,
                                           const float (&sums)[kRows / 2]) {
  // Weight rows are exchanged so that a warp's stores hit all banks.
  const auto place = [](int x_row, int weight_row) {
    return x_row * kTileRows + (weight_row ^ (x_row >> 1 & 3) << 3);
  };
  for_each_sum<kRows>(sums, [&](int x_row, int weight_row, float sum) {
    partials[place(x_row, weight_row)] = sum;
  });
  ptx::cluster_barrier();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int row_col = static_cast<int>(threadIdx.x) % 32 * 4;
  const int column = work.tile * kTileRows + row_col;
  const bool whole = args.ld % 4 == 0 && reinterpret_cast<std::uintptr_t>(args.y) % 16 == 0;
  for (int x_row = work.split + warp * args.splits; x_row < args.rows;
       x_row += kThreads / 32 * args.splits) {
    float4 parts[WideMatmul::kMostSplits];
#pragma unroll
    for (int block = 0; block < WideMatmul::kMostSplits; ++block) {
      const auto at = static_cast<std::uint32_t>(place(x_row, row_col)) * 4;
      if (block < args.splits) parts[block] = ptx::load_from_block(shared + at, block);
    }
    float4 sum = parts[0];
#pragma unroll
    for (int block = 1; block < WideMatmul::kMostSplits; ++block) {
      if (block >= args.splits) break;
      sum.x += parts[block].x;
      sum.y += parts[block].y;
      sum.z += parts[block].z;
      sum.w += parts[block].w;
    }
    float* const to = args.y + static_cast<std::size_t>(x_row) * args.ld + column;
    if (whole) {
      if (column < args.ld) *reinterpret_cast<float4*>(to) = sum;
    } else {
      const float values[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (column + i < args.ld) to[i] = values[i];
      }
    }
  }
  ptx::cluster_barrier();  // no block is gone before its sums are read
}

/// Up to kRows activation rows. A cluster has one tile.
template <typename T, int kRows>
__global__ void __launch_bounds__(kThreads, 2) wide_kernel(const __grid_constant__ WideArgs args) {
  constexpr std::uint32_t kStageBytes = stage_bytes(kRows);
  extern __shared__ std::byte memory[];
  const std::uint32_t start = ptx::shared_address(memory);
  const std::uint32_t ring = (start + kAlignment - 1) / kAlignment * kAlignment;
  const int row = static_cast<int>(threadIdx.x) / kRowPieces;
  const std::uint32_t first = ring + ptx::swizzled(row, static_cast<int>(threadIdx.x) % kRowPieces);
  const std::uint32_t last = first + (kStages - 1) * kStageBytes;

  const Work work(args);
  WeightCopies weights(args, work);
  ActivationCopies<kRows> activations(args, work);
  // Weights were there before the kernels that may still run: only activations wait for those.
  for (std::uint32_t to = first; to != last; to += kStageBytes) weights.copy_step(to);
  wait_for_previous();
  for (std::uint32_t to = first; to != last; to += kStageBytes) {
    activations.copy_step(to + kWeightBytes);
    commit_copies();  // the first with all weights so far
  }

  // Kept as an address: from the number of a stage, ptxas 13.0 adds a uniform register to that of
  // a copy with a cache hint, which the hardware refuses as an illegal instruction.
  std::uint32_t to = last;
  int stage = 0;
  for (int tile = work.tile; tile * kTileRows < args.ld; tile += work.stride) {
    float sums[kRows / 2] = {};
    for (int step = 0; step < work.steps; ++step) {
      wait_for_all_copies_but<kStages - 2>();
      ptx::wait_for_products();
      ptx::show_to_async_proxy();
      __syncthreads();  // all copies have arrived, and the stage before is used up
      const std::uint32_t at = ring + stage * kStageBytes;
      const std::uint64_t w =
          ptx::describe_rows(at + threadIdx.x / 128 * (kWeightBytes / (kTileRows / kGroupRows)));
      const std::uint64_t x = ptx::describe_rows(at + kWeightBytes);
      ptx::begin_products();
#pragma unroll
      for (int k = 0; k < kStepCols / 16; ++k) {
        ptx::multiply_add_async<T, kRows>(sums, w + 2 * k, x + 2 * k);
      }
      ptx::commit_products();
      weights.copy_step(to);
      activations.copy_step(to + kWeightBytes);
      commit_copies();
      to = to == last ? first : to + kStageBytes;
      stage = stage + 1 < kStages ? stage + 1 : 0;
    }
    ptx::wait_for_products();
    ptx::take_sums(sums);
    if (args.splits == 1) {
      for_each_sum<kRows>(sums, [&](int x_row, int weight_row, float sum) {
        const int column = tile * kTileRows + weight_row;
        if (x_row < args.rows && column < args.ld) {
          args.y[static_cast<std::size_t>(x_row) * args.ld + column] = sum;
        }
      });
    } else {
      __syncthreads();  // the ring is used up
      store_sum_of_blocks<kRows>(args, work, ring,
                                 reinterpret_cast<float*>(memory + (ring - start)), sums);
    }
  }
}

using Kernel = void (*)(WideArgs);

template <typename T>
Kernel kernel_of(int rows) {
  return rows <= 32 ? wide_kernel<T, 32> : wide_kernel<T, 64>;
}

Kernel kernel_of(DType dtype, int rows) {
  return dtype == DType::kBFloat16 ? kernel_of<__nv_bfloat16>(rows) : kernel_of<__half>(rows);
}

}  // namespace

WideMatmul::WideMatmul() {
  int device = 0, major = 0, minor = 0;
  ZI_CUDA(cudaGetDevice(&device));
  ZI_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  ZI_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  if (major != 9 || minor != 0) return;
  for (const int rows : {32, 64}) {
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      const Kernel kernel = kernel_of(dtype, rows);
      ZI_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   shared_bytes(rows)));
      ZI_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                   cudaSharedmemCarveoutMaxShared));
    }
  }
  for (int blocks = 1; blocks <= kMostSplits; blocks *= 2) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = static_cast<unsigned>(blocks);
    config.blockDim = kThreads;
    config.dynamicSmemBytes = shared_bytes(64);
    config.attrs = &attribute;
    config.numAttrs = 1;
    ZI_CUDA(cudaOccupancyMaxActiveClusters(&clusters_[static_cast<std::size_t>(blocks)],
                                           kernel_of(DType::kBFloat16, 64), &config));
  }
}

bool WideMatmul::fits(const void* a, DType a_dtype, std::int64_t rows,
                      const RowBlockMatrix& w) const {
  return rows >= 1 && rows <= kMaxRows && clusters_[1] > 0 && can_stream(a, a_dtype, w);
}

int WideMatmul::splits(int tiles, int cols) const {
  constexpr int kFewestSteps = 4;  // of a split
  for (int splits = kMostSplits; splits > 1; splits /= 2) {
    if (tiles <= clusters_[static_cast<std::size_t>(splits)] &&
        cols >= splits * kFewestSteps * kStepCols) {
      return splits;
    }
  }
  return 1;
}

void WideMatmul::run(const void* a, std::int64_t rows, const RowBlockMatrix& w, float* y,
                     cudaStream_t stream) const {
  WideArgs args{streamed(w), static_cast<const std::byte*>(a), y, static_cast<int>(rows), 1, 0};
  const int tiles = (args.ld + kTileRows - 1) / kTileRows;
  const int steps = (args.cols + kStepCols - 1) / kStepCols;
  args.splits = splits(tiles, args.cols);
  args.split_cols = (steps + args.splits - 1) / args.splits * kStepCols;
  const auto blocks =
      static_cast<unsigned>(args.splits > 1 ? tiles * args.splits : std::min(tiles, clusters_[1]));
  const int most_rows = rows <= 32 ? 32 : 64;
  launch_clusters_early(kernel_of(w.dtype, most_rows), static_cast<unsigned>(args.splits), blocks,
                        kThreads, static_cast<std::size_t>(shared_bytes(most_rows)), stream, args);
}

}  // namespace zi
