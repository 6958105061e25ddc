#pragma once

#include "backend/cuda/launch.cuh"
#include "backend/cuda/packed_copies.cuh"

/// Up to 64 rows: Hopper's matrix units read the activations from shared memory, once for the 64
/// weight rows of a warpgroup, where each warp by itself would read them for 16.
namespace zi {

/// A thread's share of the activations, the columns of a tile again and again: of a row, of the 32
/// columns of each lane of a unit, eight. They are copied as they are, and then put into the order
/// in which fragments take columns: pair q of all lanes side by side, as piece q of the row.
template <int kRows>
class WgmmaActivations {
  static_assert(kRows * 4 == kWideThreads);

 public:
  __device__ WgmmaActivations(const WideProduct& args, const WideWork& work)
      : args_(args),
        work_(work),
        row_(static_cast<int>(threadIdx.x) / 4),
        first_col_(work.begin + static_cast<int>(threadIdx.x) % 4 * 8),
        from_(args.x + (static_cast<std::size_t>(row_) * args.cols + first_col_) * 2),
        all_steps_(work.all_steps) {}

  /// Where the thread's first piece of a stage is, from its start.
  static __device__ std::uint32_t place() { return threadIdx.x * 16; }

  /// Starts the copies of the next step; none after the last one. `to` has place() in it.
  __device__ void copy_step(std::uint32_t to) {
    if (all_steps_ == 0) return;
    --all_steps_;
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
      const int col = col_ + lane * kLaneCols;
      ptx::copy_async_16(to + lane * kWideThreads * 16,
                         from_ + static_cast<std::ptrdiff_t>(col) * 2,
                         row_ < args_.rows && first_col_ + col < args_.cols);
    }
    col_ += work_.advance;
    if (++step_ == work_.steps) step_ = col_ = 0;
  }

  /// The thread's own pieces, copied, in a stage.
  __device__ void take(const std::byte* stage) {
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
      x_[lane] = *reinterpret_cast<const uint4*>(stage + lane * kWideThreads * 16 + place());
    }
  }

  /// Puts them into order, once all threads have taken theirs.
  __device__ void put(std::byte* stage) const {
    const int first = static_cast<int>(threadIdx.x) % 4 * 4;  // pair
    std::byte* const half = stage + first / 8 * kRows * 128;
    const std::uint32_t pairs[4][4] = {{x_[0].x, x_[1].x, x_[2].x, x_[3].x},
                                       {x_[0].y, x_[1].y, x_[2].y, x_[3].y},
                                       {x_[0].z, x_[1].z, x_[2].z, x_[3].z},
                                       {x_[0].w, x_[1].w, x_[2].w, x_[3].w}};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      *reinterpret_cast<uint4*>(half + ptx::swizzled(row_, first % 8 + i)) =
          make_uint4(pairs[i][0], pairs[i][1], pairs[i][2], pairs[i][3]);
    }
  }

 private:
  const WideProduct& args_;
  const WideWork& work_;
  int row_;
  int first_col_;
  const std::byte* from_;
  int all_steps_;  // not yet begun
  int step_ = 0;
  int col_ = 0;
  uint4 x_[4];
};

/// sums (16 weight rows of the warp, kRows) += the products of a unit, by the warps of a
/// warpgroup. `x` is where its activations are in shared memory.
template <typename T, int kRows>
__device__ __forceinline__ void multiply_wgmma_step(float (&sums)[kRows / 2],
                                                    const LaneFragments& upper,
                                                    const LaneFragments& lower, std::uint32_t x) {
  ptx::begin_products();
#pragma unroll
  for (int i = 0; i < kUnitCols / 16; ++i) {
    const std::uint32_t a[4] = {upper[i][0], lower[i][0], upper[i][1], lower[i][1]};
    const std::uint64_t b = ptx::describe_rows(x + i / 4 * kRows * 128) + 2 * (i % 4);
    ptx::multiply_add_async<T, kRows, false>(sums, a, b, true);
  }
  ptx::commit_products();
  ptx::wait_for_products();
}

/// Up to kRows activation rows. A cluster has one tile.
template <typename T, template <typename> typename Format, int kRows, typename Output>
__global__ void __launch_bounds__(kWideThreads, 2)
    packed_wgmma_kernel(const __grid_constant__ PackedArgs<Output> args) {
  using Fragments = Format<T>;
  using StageOf = PackedStage<Fragments, kRows>;
  static_assert(StageOf::kUnits == 1);
  using Stores = OutputStores<T, kRows, Output>;
  using Codes = CodeCopies<StageOf, Output::kMixed>;
  constexpr int kColumns = kWideTileRows / (Output::kMixed ? 2 : 1);  // of a tile
  constexpr int kStages = StageOf::kStages;
  constexpr std::uint32_t kStageBytes = StageOf::kBytes;
  __shared__ typename Stores::Shared stores_shared;
  extern __shared__ std::byte aligned_memory[];
  const std::uint32_t start = ptx::shared_address(aligned_memory);
  const std::uint32_t ring = (start + kRingAlignment - 1) / kRingAlignment * kRingAlignment;
  std::byte* const stages = aligned_memory + (ring - start);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // Through a shuffle, as in wide_matmul.cu.
  const std::uint32_t first =
      __shfl_sync(0xffffffffu, ring + StageOf::kCodesAt + Codes::place(), lane);
  const std::uint32_t last = first + (kStages - 1) * kStageBytes;
  const std::uint32_t to_scales =  // from a stage's codes
      ring + StageOf::kScalesAt + threadIdx.x * StageOf::kScaleRowBytes - first;
  const std::uint32_t to_x = ring + WgmmaActivations<kRows>::place() - first;

  const WideWork work(args, StageOf::kCols);
  const Stores stores(args.out, stores_shared);
  Codes codes(args, work, args.scales_at);
  WgmmaActivations<kRows> activations(args, work);
  // Weights were there before the kernels that may still run: only activations wait for those.
  for (std::uint32_t to = first; to != last; to += kStageBytes) codes.copy_step(to, to + to_scales);
  let_next_start();
  stores.prepare(args.rows, work.tile * kColumns + static_cast<int>(threadIdx.x) % kColumns);
  wait_for_previous();
  for (std::uint32_t to = first; to != last; to += kStageBytes) {
    activations.copy_step(to + to_x);
    commit_copies();  // the first with all weights so far
  }

  std::uint32_t to = last;
  int stage = 0;
  float sums[kRows / 2];
  for (int tile = work.tile; tile < args.tiles; tile += work.stride) {
#pragma unroll
    for (float& sum : sums) sum = 0;
    for (int step = 0; step < work.steps; ++step) {
      std::byte* const at = stages + stage * kStageBytes;
      wait_for_all_copies_but<kStages - 2>();
      activations.take(at);
      __syncthreads();  // all copies have arrived, and the stage before is used up
      codes.copy_step(to, to + to_scales);
      activations.copy_step(to + to_x);
      commit_copies();
      activations.put(at);
      LaneFragments upper, lower;
      make_fragments<Fragments, StageOf>(at, 0, upper, lower);
      ptx::show_to_async_proxy();
      __syncthreads();  // activations are in order
      multiply_wgmma_step<T, kRows>(sums, upper, lower, ring + stage * kStageBytes);
      to = to == last ? first : to + kStageBytes;
      stage = stage + 1 < kStages ? stage + 1 : 0;
    }
    ptx::take_sums(sums);
#pragma unroll
    for (float& sum : sums) sum *= Fragments::kFactor;
    if (args.splits > 1) break;
    store_own_sums<kRows, Output::kMixed>(args, stores, tile, sums);
  }
  if (args.splits == 1) return;
  __syncthreads();  // the ring is used up
  store_sums_of_cluster<kRows, Output::kMixed>(args, work, stores, ring,
                                               reinterpret_cast<float*>(stages), sums);
}

}  // namespace zi
