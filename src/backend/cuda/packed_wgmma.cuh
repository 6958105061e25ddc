#pragma once

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

/// Puts x (rows, cols) of 16 bits into order (units, ordered_unit_bytes), zeros where it has none.
template <int kRows>
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
    const int col = unit * kUnitCols + lane * kLaneCols + 2 * pair;
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

/// A stage of the ring: ordered activations, codes and scales of a unit.
template <typename Fragments, int kRows>
struct WgmmaStage {
  static constexpr int kUnits = 1;
  static constexpr int kCols = kUnitCols;
  static constexpr int kCodeRowBytes = Fragments::kCodeBytes;
  static constexpr int kScaleRowBytes = Fragments::kScaleBytes;
  static constexpr int kCodesAt = ordered_unit_bytes(kRows);
  static constexpr int kScalesAt = kCodesAt + kWideTileRows * kCodeRowBytes;
  static constexpr int kBytes = (kScalesAt + kWideTileRows * kScaleRowBytes + kRingAlignment - 1) /
                                kRingAlignment * kRingAlignment;
  static constexpr int kStages = std::min(kMostPackedStages, kMostPackedSharedBytes / kBytes);
  static constexpr int kSharedBytes =
      std::max(kStages * kBytes, kRows* kWideTileRows* static_cast<int>(sizeof(float)));
  static_assert(kStages >= 3);
};

/// A thread's share of the copies of ordered activations, the units of a tile again and again.
template <int kRows>
class OrderedCopies {
  static constexpr int kBytes = ordered_unit_bytes(kRows);
  static constexpr int kBytesAtOnce = kWideThreads * 16;
  static_assert(kBytes % kBytesAtOnce == 0);

 public:
  __device__ OrderedCopies(const std::byte* ordered, const WideWork& work)
      : first_(ordered + static_cast<std::size_t>(work.begin / kUnitCols) * kBytes +
               threadIdx.x * 16),
        advance_(work.advance / kUnitCols * kBytes),
        steps_(work.steps),
        all_steps_(work.all_steps),
        from_(first_) {}

  static __device__ std::uint32_t place() { return threadIdx.x * 16; }

  /// Starts those of the next step; none after the last one. `to` has place() in it.
  __device__ void copy_step(std::uint32_t to) {
    if (all_steps_ == 0) return;
    --all_steps_;
#pragma unroll
    for (int i = 0; i < kBytes / kBytesAtOnce; ++i) {
      ptx::copy_async_16(to + i * kBytesAtOnce, from_ + i * kBytesAtOnce, true);
    }
    from_ += advance_;
    if (++step_ == steps_) {
      step_ = 0;
      from_ = first_;
    }
  }

 private:
  const std::byte* first_;
  int advance_;
  int steps_;
  int all_steps_;  // not yet begun
  const std::byte* from_;
  int step_ = 0;
};

/// Begins sums (64 weight rows of the warpgroup, kRows) += the products of a unit. `x` is where its
/// activations are in shared memory.
template <typename T, int kRows>
__device__ __forceinline__ void begin_wgmma_step(float (&sums)[kRows / 2],
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
}

template <typename Output>
struct OrderedArgs : PackedArgs<Output> {
  const std::byte* ordered;  // x
};

/// Up to kRows activation rows. A cluster has one tile.
template <typename T, template <typename> typename Format, int kRows, typename Output>
__global__ void __launch_bounds__(kWideThreads, 2)
    packed_wgmma_kernel(const __grid_constant__ OrderedArgs<Output> args) {
  using Fragments = Format<T>;
  using StageOf = WgmmaStage<Fragments, kRows>;
  using Stores = OutputStores<T, kRows, Output>;
  using Codes = CodeCopies<StageOf, Output::kMixed>;
  using Activations = OrderedCopies<kRows>;
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
  const std::uint32_t to_x = ring + Activations::place() - first;

  const WideWork work(args, StageOf::kCols);
  const Stores stores(args.out, stores_shared);
  Codes codes(args, work, args.scales_at);
  Activations activations(args.ordered, work);
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
      wait_for_all_copies_but<kStages - 2>();
      ptx::show_to_async_proxy();
      ptx::wait_for_products();
      __syncthreads();  // all copies have arrived, and the stage before is used up
      codes.copy_step(to, to + to_scales);
      activations.copy_step(to + to_x);
      commit_copies();
      LaneFragments upper, lower;
      make_fragments<Fragments, StageOf>(stages + stage * kStageBytes, 0, upper, lower);
      begin_wgmma_step<T, kRows>(sums, upper, lower, ring + stage * kStageBytes);
      to = to == last ? first : to + kStageBytes;
      stage = stage + 1 < kStages ? stage + 1 : 0;
    }
    ptx::wait_for_products();
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
