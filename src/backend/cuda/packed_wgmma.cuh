#pragma once

#include "backend/cuda/group_fragments.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/packed_copies.cuh"

/// Some dozen rows: Hopper's matrix units read the activations from shared memory, once for the 64
/// weight rows of a warpgroup, where each warp by itself would read them for 16.
///
/// A kernel before puts the activations into the order in which fragments take columns, and into
/// the places that they have in shared memory. (Blocks of two tiles, which read activations half as
/// often and make the fragments of one tile while the other is multiplied, took 1.3 times as long:
/// with one of them a multiprocessor, nothing else runs at its barriers.)
namespace zi {

/// A unit of ordered activations: two halves of (kRows, 128 bytes), in which pair q of all four
/// lanes of a row is piece q % 8 of half q / 8.
constexpr int ordered_unit_bytes(int rows) { return rows * kUnitCols * 2; }
/// Units of ordered activations, as many as whole steps have.
constexpr int ordered_units(std::int64_t cols) {
  return static_cast<int>((cols + 2 * kUnitCols - 1) / (2 * kUnitCols) * 2);
}

/// Puts x (rows, cols) of 16 bits into order (units, ordered_unit_bytes), zeros where it has none.
template <typename Fragments, int kRows>
__global__ void __launch_bounds__(kWideThreads)
    order_activations(const std::byte* x, int rows, int cols, int units, std::byte* ordered) {
  wait_for_previous();
  constexpr int kPieces = kUnitCols * 2 / 16;  // of a row of a unit
  const int index = static_cast<int>(blockIdx.x * kWideThreads + threadIdx.x);
  const int unit = index / (kRows * kPieces);
  const int row = index / kPieces % kRows;
  const int pair = index % kPieces;
  if (unit >= units) return;
  std::uint32_t pairs[4];
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {
    const int col = unit * kUnitCols + Fragments::x_piece(lane, pair / 4) * 8 + pair % 4 * 2;
    const bool there = row < rows && col < cols;
    pairs[lane] = there ? *reinterpret_cast<const std::uint32_t*>(
                              x + (static_cast<std::size_t>(row) * cols + col) * 2)
                        : 0;
  }
  std::byte* const half =
      ordered + static_cast<std::size_t>(unit) * ordered_unit_bytes(kRows) + pair / 8 * kRows * 128;
  *reinterpret_cast<uint4*>(half + ptx::swizzled(row, pair % 8)) =
      make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

/// The rings in shared memory: of ordered activations, a unit a stage, and of codes and scales, a
/// step a stage, each row's units side by side: 128 bytes of codes where there are registers for
/// that, as shorter pieces of a row take longer to read.
template <typename FragmentsOf, int kRows>
struct WgmmaStage {
  using Fragments = FragmentsOf;
  static constexpr int kUnits = Fragments::kScaledGroups > 0 ? 1 : 128 / Fragments::kCodeBytes;
  static constexpr int kCols = kUnits * kUnitCols;
  static constexpr int kCodeRowBytes = kUnits * Fragments::kCodeBytes;
  static constexpr int kScaleRowBytes = kUnits * Fragments::kScaleBytes;
  static constexpr int kXBytes = ordered_unit_bytes(kRows);
  static constexpr int kCodesAt = 0;  // of a stage of codes and scales
  static constexpr int kScalesAt = kWideTileRows * kCodeRowBytes;
  static constexpr int kBytes =
      (kScalesAt + kWideTileRows * kScaleRowBytes + kLineBytes - 1) / kLineBytes * kLineBytes;
  static constexpr int kXStages = kMostPackedSharedBytes < 4 * kXBytes + 4 * kBytes ? 3 : 4;
  static constexpr int kStages =
      std::min(kMostPackedStages, (kMostPackedSharedBytes - kXStages * kXBytes) / kBytes);
  static constexpr int kRingAt = kXStages * kXBytes;  // of codes and scales
  static constexpr int kSharedBytes =
      std::max(kRingAt + kStages * kBytes, kRows* kWideTileRows* static_cast<int>(sizeof(float)));
  static_assert(kStages >= kFewestPackedStages);
};

/// The copies of ordered activations, the units of a tile again and again, kStepUnits that follow
/// each other in a step: one thread starts them. They come past the threads, so that none has to
/// show them to the matrix units.
template <int kRows, int kStepUnits>
class OrderedCopies {
  static constexpr int kBytes = ordered_unit_bytes(kRows);

 public:
  __device__ OrderedCopies(const std::byte* ordered, const WideWork& work)
      : ordered_(ordered),
        first_(work.begin / kUnitCols),
        advance_(work.advance / kUnitCols - kStepUnits),
        units_(work.steps * kStepUnits),
        all_units_(work.all_steps * kStepUnits),
        unit_(first_) {}

  __device__ bool done() const { return all_units_ == 0; }

  /// Starts that of the next unit; none after the last one.
  __device__ void copy_unit(std::uint32_t to, std::uint32_t arrival) {
    if (done()) return;
    --all_units_;
    ptx::copy_bulk(to, ordered_ + static_cast<std::size_t>(unit_) * kBytes, kBytes, arrival);
    ++unit_;
    if (++done_ % kStepUnits == 0) unit_ += advance_;
    if (done_ == units_) {
      done_ = 0;
      unit_ = first_;
    }
  }

 private:
  const std::byte* ordered_;
  int first_;
  int advance_;
  int units_;
  int all_units_;  // not yet begun
  int unit_;       // the next
  int done_ = 0;   // of the tile
};

/// Begins sums (64 weight rows of the warpgroup, kRows) += the products of half a unit, or = with
/// kFirst. `x` is where the unit's activations are in shared memory.
template <typename T, int kRows, int kHalf, bool kFirst>
__device__ __forceinline__ void begin_half(float (&sums)[kRows / 2], const HalfFragments& upper,
                                           const HalfFragments& lower, std::uint32_t x) {
  ptx::begin_products();
  const std::uint64_t rows = ptx::describe_rows(x + kHalf * kRows * 128);
#pragma unroll
  for (int i = 0; i < kUnitCols / 32; ++i) {
    const std::uint32_t a[4] = {upper[i][0], lower[i][0], upper[i][1], lower[i][1]};
    ptx::multiply_add_async<T, kRows, false>(sums, a, rows + 2 * i, !kFirst || i > 0);
  }
  ptx::commit_products();
}

template <typename Output>
struct OrderedArgs : PackedArgs<Output> {
  const std::byte* ordered;  // x
};

/// Up to kRows activation rows. A cluster has one tile.
///
/// Where registers hold the fragments of both halves of a unit, those of the next half are made
/// while one is multiplied. When a unit begins, the second half of the one before may still be
/// multiplied, and read activations.
template <typename T, template <typename> typename Format, int kRows, typename Output>
__global__ void __launch_bounds__(kWideThreads, 2)
    packed_wgmma_kernel(const __grid_constant__ OrderedArgs<Output> args) {
  using Fragments = Format<T>;
  using StageOf = WgmmaStage<Fragments, kRows>;
  using Stores = OutputStores<T, kRows, Output>;
  using Weights = WeightCopies<StageOf, Output::kMixed>;
  constexpr int kColumns = kWideTileRows / (Output::kMixed ? 2 : 1);  // of a tile
  constexpr int kUnits = StageOf::kUnits;
  constexpr int kAhead = StageOf::kStages - 1;    // steps whose codes are being copied
  constexpr int kXAhead = StageOf::kXStages - 2;  // and units of activations
  constexpr std::uint32_t kStageBytes = StageOf::kBytes;
  constexpr bool kScaled = Fragments::kScaledGroups > 0;
  __shared__ typename Stores::Shared stores_shared;
  __shared__ std::uint64_t barriers[2 * StageOf::kXStages];  // activations arrived, are used up
  extern __shared__ std::byte aligned_memory[];
  const std::uint32_t start = ptx::shared_address(aligned_memory);
  const std::uint32_t rings = (start + kRingAlignment - 1) / kRingAlignment * kRingAlignment;
  std::byte* const memory = aligned_memory + (rings - start);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // Through a shuffle, as in wide_matmul.cu.
  const std::uint32_t first =
      __shfl_sync(0xffffffffu, rings + StageOf::kRingAt + Weights::place(), lane);
  const std::uint32_t last = first + (StageOf::kStages - 1) * kStageBytes;
  const std::uint32_t full = ptx::shared_address(barriers);
  const std::uint32_t used = full + StageOf::kXStages * 8;

  const WideWork work(args, StageOf::kCols);
  const Stores stores(args.out, stores_shared);
  Weights weights(args, work, args.scales);
  OrderedCopies<kRows, kUnits> activations(args.ordered, work);
  // Weights were there before the kernels that may still run: only activations wait for those.
  for (std::uint32_t to = first; to != last; to += kStageBytes) {
    weights.copy_step(to);
    commit_copies();
  }
  let_next_start();
  stores.prepare(args.rows, work.tile * kColumns + static_cast<int>(threadIdx.x) % kColumns);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < StageOf::kXStages; ++stage) {
      ptx::make_barrier(full + stage * 8, 1);
      ptx::make_barrier(used + stage * 8, kWideThreads / 32);
    }
    ptx::show_barriers();
  }
  wait_for_previous();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kXAhead; ++stage) {
      activations.copy_unit(rings + stage * StageOf::kXBytes, full + stage * 8);
    }
  }

  float sums[kRows / 2];
  float of_unit[kScaled ? kRows / 2 : 1];
  float(&add_to)[kRows / 2] =
      *reinterpret_cast<float(*)[kRows / 2]>(kScaled ? &of_unit[0] : &sums[0]);
  GroupFactors<Fragments::kScaledGroups> factors;
  // Of both halves, or where there is no room for that of one.
  constexpr int kHalves = kRows > 32 && (kScaled || Fragments::kCodeBytes > 64) ? 1 : 2;
  HalfFragments upper[kHalves], lower[kHalves];
  std::uint32_t to = last;
  int stage = 0, x_stage = 0, x_parity = 0, to_x_stage = kXAhead, used_parity = 1;
  // Where a step has one unit, the barrier of the block does for what is used up.
  const auto release_unit_before = [&] {
    if (kUnits > 1 && lane == 0)
      ptx::arrive(used + (x_stage == 0 ? StageOf::kXStages - 1 : x_stage - 1) * 8);
  };
  for (int tile = work.tile; tile < args.tiles; tile += work.stride) {
#pragma unroll
    for (float& sum : sums) sum = 0;
    bool is_first = true;
    for (int step = 0; step < work.steps; ++step) {
      wait_for_all_copies_but<kAhead - 1>();
      if constexpr (kUnits == 1) ptx::wait_for_products_but<1>();
      __syncthreads();  // all codes have arrived, and stages are used up
      weights.copy_step(to);
      commit_copies();
      const std::byte* const filled = memory + StageOf::kRingAt + stage * kStageBytes;
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        if (threadIdx.x == 0 && !activations.done()) {
          // Before the first time around, the phase before the first one counts as over.
          if constexpr (kUnits > 1) ptx::wait_for_phase(used + to_x_stage * 8, used_parity);
          activations.copy_unit(rings + to_x_stage * StageOf::kXBytes, full + to_x_stage * 8);
        }
        if constexpr (kUnits > 1) ptx::wait_for_products_but<1>();
        const std::uint32_t x = rings + x_stage * StageOf::kXBytes;
        LaneCodes<StageOf> codes(filled, filled + StageOf::kScalesAt, unit);
        const auto take_unit = [&] {
          if constexpr (kScaled) {
            ptx::wait_for_products();
            if (!is_first) {
              ptx::take_sums(of_unit);
              factors.add(sums, of_unit, 0);
            }
            factors.template read<StageOf>(filled + StageOf::kScalesAt, unit);
          }
        };
        if constexpr (kHalves == 1) {
          ptx::wait_for_products();
          take_unit();
        }
        codes.template make<0>(upper[0], lower[0]);
        if constexpr (kHalves == 2) take_unit();
        ptx::wait_for_phase(full + x_stage * 8, x_parity);
        begin_half<T, kRows, 0, kScaled>(add_to, upper[0], lower[0], x);
        ptx::wait_for_products_but<kHalves - 1>();
        if (!is_first) release_unit_before();
        is_first = false;
        codes.template make<1>(upper[kHalves - 1], lower[kHalves - 1]);
        begin_half<T, kRows, 1, false>(add_to, upper[kHalves - 1], lower[kHalves - 1], x);
        if (++x_stage == StageOf::kXStages) {
          x_stage = 0;
          x_parity ^= 1;
        }
        if (++to_x_stage == StageOf::kXStages) {
          to_x_stage = 0;
          used_parity ^= 1;
        }
      }
      to = to == last ? first : to + kStageBytes;
      stage = stage + 1 < StageOf::kStages ? stage + 1 : 0;
    }
    ptx::wait_for_products();
    release_unit_before();
    ptx::take_sums(add_to);
    if constexpr (kScaled) factors.add(sums, of_unit, 0);
#pragma unroll
    for (float& sum : sums) sum *= Fragments::kFactor;
    if (args.splits > 1) break;
    store_own_sums<kRows, Output::kMixed>(args, stores, tile, sums);
  }
  if (args.splits == 1) return;
  __syncthreads();  // the rings are used up
  store_sums_of_cluster<kRows, Output::kMixed>(args, work, stores, rings,
                                               reinterpret_cast<float*>(memory), sums);
}

}  // namespace zi
