#pragma once

#include "backend/cuda/group_fragments.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/packed_copies.cuh"

/// Few rows: warps read the activations' fragments from shared memory.
namespace zi {

/// A thread's share of the copies of activations, by those that copy scales: the columns of a tile
/// again and again.
template <typename StageOf, int kRows>
class MmaActivations {
  static constexpr int kPieces = StageOf::kXRowBytes / 16;  // of a row
  static constexpr int kRowsAtOnce = kScaleThreads / kPieces;
  static constexpr int kRowsOfThread = (kRows + kRowsAtOnce - 1) / kRowsAtOnce;

 public:
  __device__ MmaActivations(const WideProduct& args, const WideWork& work)
      : args_(args),
        work_(work),
        row_(static_cast<int>(threadIdx.x) / kPieces),
        first_col_(work.begin + static_cast<int>(threadIdx.x) % kPieces * 8),
        from_(args.x + (static_cast<std::size_t>(row_) * args.cols + first_col_) * 2),
        all_steps_(work.all_steps) {}

  static __device__ std::uint32_t place() {
    const int row = static_cast<int>(threadIdx.x) / kPieces;
    const int piece = static_cast<int>(threadIdx.x) % kPieces;
    return static_cast<std::uint32_t>(
        row * StageOf::kXRowBytes +
        (piece / 16 * 16 + StageOf::Fragments::x_place(row, piece % 16)) * 16);
  }

  /// Starts those of the next step; none after the last one. `to` has place() in it.
  __device__ void copy_step(std::uint32_t to) {
    if (threadIdx.x >= kScaleThreads || all_steps_ == 0) return;
    const bool in_row = first_col_ + col_ < args_.cols;
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      if (kRows % kRowsAtOnce != 0 && row_ + i * kRowsAtOnce >= kRows) break;
      ptx::copy_async_16(
          to + i * kRowsAtOnce * StageOf::kXRowBytes,
          from_ + (static_cast<std::size_t>(i) * kRowsAtOnce * args_.cols + col_) * 2,
          in_row && row_ + i * kRowsAtOnce < args_.rows);
    }
    --all_steps_;
    col_ += work_.advance;
    if (++step_ == work_.steps) step_ = col_ = 0;
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
};

/// sums (16 weight rows of the warp, kRows) += the products of one step: four sums for each eight
/// activation rows, as ptx::multiply_add leaves them.
template <typename T, typename StageOf, int kRows>
__device__ inline void multiply_mma_step(float (&sums)[kRows / 2], const std::byte* stage) {
  using Fragments = typename StageOf::Fragments;
  constexpr int kGroups = Fragments::kScaledGroups;
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int unit = 0; unit < StageOf::kUnits; ++unit) {
    LaneFragments upper, lower;
    LaneCodes<StageOf> codes(stage + StageOf::kCodesAt, stage + StageOf::kScalesAt, unit);
    codes.template make<0>(upper[0], lower[0]);
    codes.template make<1>(upper[1], lower[1]);
    GroupFactors<kGroups> factors;
    if constexpr (kGroups > 0) factors.template read<StageOf>(stage + StageOf::kScalesAt, unit);
#pragma unroll
    for (int eight = 0; eight < kRows / 8; ++eight) {
      float(&to)[4] = *reinterpret_cast<float(*)[4]>(sums + 4 * eight);
      const std::byte* const x =
          stage + (eight * 8 + lane / 4) * StageOf::kXRowBytes + unit * kUnitCols * 2;
      float of_group[4] = {};
      float(&add_to)[4] = kGroups > 0 ? of_group : to;
#pragma unroll
      for (int j = 0; j < kLaneCols / 8; ++j) {
        const int piece = Fragments::x_place(lane / 4, Fragments::x_piece(lane % 4, j));
        const uint4 b = *reinterpret_cast<const uint4*>(x + piece * 16);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const auto& u = upper[j / 2][j % 2 * 2 + i];
          const auto& l = lower[j / 2][j % 2 * 2 + i];
          const std::uint32_t a[4] = {u[0], l[0], u[1], l[1]};
          ptx::multiply_add<T>(add_to, a, i == 0 ? b.x : b.z, i == 0 ? b.y : b.w);
        }
        if constexpr (kGroups > 0) {
          constexpr int kPieces = kLaneCols / 8 / kGroups;  // of a lane, of a group
          if (j % kPieces != kPieces - 1) continue;
          factors.add(to, of_group, j / kPieces);
#pragma unroll
          for (float& sum : of_group) sum = 0;
        }
      }
    }
  }
}

/// Up to kRows activation rows. A cluster has one tile.
template <typename T, template <typename> typename Format, int kRows, typename Output>
__global__ void __launch_bounds__(kWideThreads, 2)
    packed_mma_kernel(const __grid_constant__ PackedArgs<Output> args) {
  using Fragments = Format<T>;
  using StageOf = PackedStage<Fragments, kRows>;
  using Stores = OutputStores<T, kRows, Output>;
  using Weights = WeightCopies<StageOf, Output::kMixed>;
  using Activations = MmaActivations<StageOf, kRows>;
  constexpr int kColumns = kWideTileRows / (Output::kMixed ? 2 : 1);  // of a tile
  constexpr int kStages = StageOf::kStages;
  constexpr std::uint32_t kStageBytes = StageOf::kBytes;
  __shared__ typename Stores::Shared stores_shared;
  extern __shared__ __align__(kLineBytes) uint4 memory[];
  const std::uint32_t ring = ptx::shared_address(memory);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // Through a shuffle, as in wide_matmul.cu.
  const std::uint32_t first = __shfl_sync(0xffffffffu, ring + Weights::place(), lane);
  const std::uint32_t last = first + (kStages - 1) * kStageBytes;
  const std::uint32_t to_x = ring + Activations::place() - first;

  const WideWork work(args, StageOf::kCols);
  const Stores stores(args.out, stores_shared);
  Weights weights(args, work, args.scales);
  Activations activations(args, work);
  // Weights were there before the kernels that may still run: only activations wait for those.
  for (std::uint32_t to = first; to != last; to += kStageBytes) {
    weights.copy_step(to);
    if (threadIdx.x >= kScaleThreads) commit_copies();
  }
  let_next_start();
  stores.prepare(args.rows, work.tile * kColumns + static_cast<int>(threadIdx.x) % kColumns);
  wait_for_previous();
  for (std::uint32_t to = first; to != last; to += kStageBytes) {
    activations.copy_step(to + to_x);
    if (threadIdx.x < kScaleThreads) commit_copies();  // the first with all scales so far
  }

  std::uint32_t to = last;
  int stage = 0;
  float sums[kRows / 2];
  for (int tile = work.tile; tile < args.tiles; tile += work.stride) {
#pragma unroll
    for (float& sum : sums) sum = 0;
    for (int step = 0; step < work.steps; ++step) {
      wait_for_all_copies_but<kStages - 2>();
      __syncthreads();  // all copies have arrived, and the stage before is used up
      weights.copy_step(to);
      activations.copy_step(to + to_x);
      commit_copies();
      multiply_mma_step<T, StageOf, kRows>(
          sums, reinterpret_cast<const std::byte*>(memory) + stage * kStageBytes);
      to = to == last ? first : to + kStageBytes;
      stage = stage + 1 < kStages ? stage + 1 : 0;
    }
#pragma unroll
    for (float& sum : sums) sum *= Fragments::kFactor;
    if (args.splits > 1) break;
    store_own_sums<kRows, Output::kMixed>(args, stores, tile, sums);
  }
  if (args.splits == 1) return;
  __syncthreads();  // the ring is used up
  store_sums_of_cluster<kRows, Output::kMixed>(args, work, stores, ring,
                                               reinterpret_cast<float*>(memory), sums);
}

}  // namespace zi
