#include <algorithm>
#include <type_traits>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/wide_matmul.h"
#include "backend/cuda/wide_product.cuh"

/// Weights, read once, and the activations of the same columns come in steps of kStepCols columns
/// into a ring in shared memory, from which Hopper's matrix units take both; two blocks a
/// multiprocessor.
namespace zi {
namespace {

constexpr int kStepCols = 64;              // 128 bytes of each row
constexpr int kRowPieces = kStepCols / 8;  // of 16 bytes
constexpr int kRowsAtOnce = kWideThreads / kRowPieces;
constexpr int kWeightBytes = kWideTileRows * kStepCols * 2;  // of a stage

/// Of several matrices for more than kMaxRowsOfAny rows: where there are more, launches and the
/// activation's own kernel take less than what cuBLAS's products save.
constexpr std::int64_t kMostWeights = std::int64_t{1} << 27;
constexpr int stages_of(int rows) { return rows > 64 ? 3 : 4; }
constexpr int kFewestCols = 16 * kStepCols;  // of a block that shares a tile
constexpr int stage_bytes(int rows) { return kWeightBytes + rows * kStepCols * 2; }
constexpr int shared_bytes(int rows) {
  return stages_of(rows) * stage_bytes(rows) + kRingAlignment;
}

/// A thread's share of the copies of weights: a piece of each kRowsAtOnce-th row.
template <bool kMixed>
class WeightCopies {
 public:
  __device__ WeightCopies(const WideProduct& args, const WideWork& work)
      : args_(args), work_(work), policy_(evict_first_policy()), tile_(work.tile) {
    start_tile();
  }

  /// Starts those of the next step to a stage; none after the last one.
  __device__ void copy_step(std::uint32_t stage) {
    if (done_ == work_.all_steps) return;
    const bool there = col_ < args_.cols;
#pragma unroll
    for (int i = 0; i < kWideTileRows / kRowsAtOnce; ++i) {
      copy_weights_async(stage + i * kRowsAtOnce * 128, from_[i], there, policy_);
      from_[i] += work_.advance * 2;
    }
    col_ += work_.advance;
    ++done_;
    if (++step_ == work_.steps) {
      tile_ += work_.stride;
      start_tile();
    }
  }

  /// Brings the next step's into L2: the ring is full, and memory else idle until others are done.
  __device__ void fetch_step() const {
    if (done_ == work_.all_steps || col_ >= args_.cols) return;
#pragma unroll
    for (int i = 0; i < kWideTileRows / kRowsAtOnce; ++i) {
      if (threadIdx.x % kRowPieces == 0) fetch_to_l2(from_[i]);
    }
  }

 private:
  __device__ void start_tile() {
    if (tile_ >= args_.tiles) return;
    step_ = 0;
    col_ = work_.begin + static_cast<int>(threadIdx.x) % kRowPieces * 8;
    const StreamedTile tile = tile_of<kWideTileRows, kMixed>(args_, tile_);
    const int row = static_cast<int>(threadIdx.x) / kRowPieces;
#pragma unroll
    for (int i = 0; i < kWideTileRows / kRowsAtOnce; ++i) {
      // Nobody stores the sums of rows after the last one.
      from_[i] = row_at<kMixed>(args_, tile, row + i * kRowsAtOnce) + col_ * 2;
    }
  }

  const WideProduct& args_;
  const WideWork& work_;
  std::uint64_t policy_;
  int tile_;
  int step_ = 0;
  int done_ = 0;
  int col_ = 0;
  const std::byte* from_[kWideTileRows / kRowsAtOnce];
};

/// The same of activations: the columns of a tile again and again.
template <int kRows>
class ActivationCopies {
 public:
  __device__ ActivationCopies(const WideProduct& args, const WideWork& work)
      : args_(args),
        work_(work),
        row_(static_cast<int>(threadIdx.x) / kRowPieces),
        first_col_(work.begin + static_cast<int>(threadIdx.x) % kRowPieces * 8),
        from_(args.x + (static_cast<std::size_t>(row_) * args.cols + first_col_) * 2),
        stride_(static_cast<std::size_t>(kRowsAtOnce) * args.cols * 2) {}

  __device__ void copy_step(std::uint32_t stage) {
    if (done_ == work_.all_steps) return;
    const int col = step_ * work_.advance;
    const bool in_row = first_col_ + col < args_.cols;
    const std::byte* from = from_ + static_cast<std::size_t>(col) * 2;
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
  const WideProduct& args_;
  const WideWork& work_;
  int row_;
  int first_col_;
  const std::byte* from_;
  std::size_t stride_;
  int step_ = 0;
  int done_ = 0;
};

/// Up to kRows activation rows. A cluster has one tile.
template <typename T, int kRows, typename Output>
__global__ void __launch_bounds__(kWideThreads, 2)
    wide_kernel(const __grid_constant__ WideArgs<Output> args) {
  using Stores = OutputStores<T, kRows, Output>;
  constexpr int kColumns = kWideTileRows / (Output::kMixed ? 2 : 1);  // of a tile
  __shared__ typename Stores::Shared stores_shared;
  constexpr int kStages = stages_of(kRows);
  constexpr std::uint32_t kStageBytes = stage_bytes(kRows);
  extern __shared__ std::byte memory[];
  const std::uint32_t start = ptx::shared_address(memory);
  const std::uint32_t ring = (start + kRingAlignment - 1) / kRingAlignment * kRingAlignment;
  const int row = static_cast<int>(threadIdx.x) / kRowPieces;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // Through a shuffle, and kept as an address: where ptxas 13.0 knows the part that all threads
  // share or the number of a stage, it adds a uniform register to the address of a copy with a
  // cache hint, which the hardware refuses as an illegal instruction. Only a run on Hopper tells.
  const std::uint32_t first = __shfl_sync(
      0xffffffffu, ring + ptx::swizzled(row, static_cast<int>(threadIdx.x) % kRowPieces), lane);
  const std::uint32_t last = first + (kStages - 1) * kStageBytes;

  const WideWork work(args, kStepCols);
  const Stores stores(args.out, stores_shared);
  WeightCopies<Output::kMixed> weights(args, work);
  ActivationCopies<kRows> activations(args, work);
  // Weights were there before the kernels that may still run: only activations wait for those.
  for (std::uint32_t to = first; to != last; to += kStageBytes) weights.copy_step(to);
  weights.fetch_step();
  let_next_start();
  stores.prepare(args.rows, work.tile * kColumns + static_cast<int>(threadIdx.x) % kColumns);
  wait_for_previous();
  for (std::uint32_t to = first; to != last; to += kStageBytes) {
    activations.copy_step(to + kWeightBytes);
    commit_copies();  // the first with all weights so far
  }

  std::uint32_t to = last;
  int stage = 0;
  float sums[kRows / 2];
  for (int tile = work.tile; tile < args.tiles; tile += work.stride) {
#pragma unroll
    for (float& sum : sums) sum = 0;
    for (int step = 0; step < work.steps; ++step) {
      wait_for_all_copies_but<kStages - 2>();
      ptx::wait_for_products();
      ptx::show_to_async_proxy();
      __syncthreads();  // all copies have arrived, and the stage before is used up
      const std::uint32_t at = ring + stage * kStageBytes;
      const std::uint64_t w = ptx::describe_rows(
          at + threadIdx.x / 128 * (kWeightBytes / (kWideTileRows / kWideGroupRows)));
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
    if (args.splits > 1) break;
    store_own_sums<kRows, Output::kMixed>(args, stores, tile, sums);
  }
  if (args.splits == 1) return;
  __syncthreads();  // the ring is used up
  store_sums_of_cluster<kRows, Output::kMixed>(
      args, work, stores, ring, reinterpret_cast<float*>(memory + (ring - start)), sums);
}

template <typename Output>
using Kernel = void (*)(WideArgs<Output>);

/// Outputs of several matrices, and so of more than kMaxRowsOfAny rows.
template <typename Output>
constexpr bool kTakesSeveral = Output::kMixed || std::is_same_v<Output, SumsOutput>;

template <typename T, typename Output>
Kernel<Output> kernel_of(int rows) {
  if constexpr (kTakesSeveral<Output>) {
    if (rows > 64) return wide_kernel<T, 128, Output>;
  }
  return rows <= 32 ? wide_kernel<T, 32, Output> : wide_kernel<T, 64, Output>;
}

template <typename Output>
Kernel<Output> kernel_of(DType dtype, int rows) {
  return dtype == DType::kBFloat16 ? kernel_of<__nv_bfloat16, Output>(rows)
                                   : kernel_of<__half, Output>(rows);
}

/// Lets the kernels have their shared memory.
template <typename Output>
void prepare_kernels() {
  for (const int rows : {32, 64, 128}) {
    if (rows > 64 && !kTakesSeveral<Output>) continue;
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      const Kernel<Output> kernel = kernel_of<Output>(dtype, rows);
      allow_shared_memory(reinterpret_cast<const void*>(kernel), shared_bytes(rows));
    }
  }
}

}  // namespace

WideMatmul::WideMatmul() {
  const auto* const kernel =
      reinterpret_cast<const void*>(kernel_of<SumsOutput>(DType::kBFloat16, kMaxRows));
  if (!kernel_features(compiled_architecture(kernel), device_architecture()).hopper_products) {
    return;
  }
  for_each_output([]<typename Output>(const Output&) { prepare_kernels<Output>(); });
  clusters_ = clusters_at_once(
      reinterpret_cast<const void*>(kernel_of<QkvOutput>(DType::kBFloat16, 64)), shared_bytes(64));
}

bool WideMatmul::fits(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w) const {
  const bool many = w.size() > 1 && w.padded_rows() * w.cols() <= kMostWeights;
  const bool taken = rows <= (many ? kMaxRows : kMaxRowsOfAny);
  return rows >= 1 && taken && clusters_[1] > 0 && can_stream(a, a_dtype, w);
}

void WideMatmul::run(const void* a, std::int64_t rows, const Matrices& w,
                     const ProductOutput& output, cudaStream_t stream) const {
  const int most_rows = rows <= 32 ? 32 : rows <= 64 ? 64 : 128;
  // The same for mixed and unmixed tiles, so that sums are the same.
  const auto whole_tiles = static_cast<int>((w.padded_rows() + kWideTileRows - 1) / kWideTileRows);
  std::visit(
      [&]<typename Output>(const Output& out) {
        WideArgs<Output> args{{streamed(w, a, rows, kWideTileRows, Output::kMixed), 1}, out};
        args.splits = cluster_splits(clusters_, whole_tiles, args.cols, kFewestCols);
        const auto blocks = static_cast<unsigned>(
            args.splits > 1 ? args.tiles * args.splits : std::min(args.tiles, clusters_[1]));
        launch_clusters_early(kernel_of<Output>(w.format().dtype, most_rows),
                              static_cast<unsigned>(args.splits), blocks, kWideThreads,
                              static_cast<std::size_t>(shared_bytes(most_rows)), stream, args);
      },
      output);
}

}  // namespace zi
