#include <algorithm>
#include <type_traits>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/packed_fragments.cuh"
#include "backend/cuda/packed_matmul.h"
#include "backend/cuda/wide_product.cuh"

/// Codes, read once, their scales and the activations of the same columns come in steps of some
/// units of columns into a ring in shared memory, two blocks a multiprocessor. Each warp has 16
/// weight rows of a tile, of whose codes it makes the fragments of mma in registers.
namespace zi {
namespace {

constexpr int kMostSharedBytes = 111 << 10;
constexpr int kMostStages = 8;
/// Columns of a block that shares a tile at least, for all numbers of rows: sums are the same.
constexpr int kFewestCols = 8 * kUnitCols;

/// A stage of the ring: activations, codes, scales; each row's units side by side.
template <typename Fragments, int kRows>
struct Stage {
  /// Long steps, where codes and activations do not take too much memory for that.
  static constexpr int kUnits = kRows <= (Fragments::kCodeBytes == 64 ? 16 : 8) ? 2 : 1;
  static constexpr int kCols = kUnits * kUnitCols;
  static constexpr int kXRowBytes = kCols * 2;
  static constexpr int kCodeRowBytes = kUnits * Fragments::kCodeBytes;
  static constexpr int kScaleRowBytes = kUnits * Fragments::kScaleBytes;
  static constexpr int kCodesAt = kRows * kXRowBytes;
  static constexpr int kScalesAt = kCodesAt + kWideTileRows * kCodeRowBytes;
  static constexpr int kBytes = kScalesAt + kWideTileRows * kScaleRowBytes;
  static constexpr int kStages = std::min(kMostStages, kMostSharedBytes / kBytes);
  static constexpr int kSharedBytes =
      std::max(kStages * kBytes, kRows* kWideTileRows* static_cast<int>(sizeof(float)));
  static_assert(kStages >= 3 && kBytes % 16 == 0);
};

/// Where the 16-byte piece of a row of codes is in it, so that lanes hit all banks that read pieces
/// 4 u + t (int4), or pieces 2 t and then 2 t + 1 (int8), of two rows.
template <typename StageOf>
__device__ constexpr int code_place(int row, int piece) {
  if (StageOf::kCodeRowBytes == 64) return piece;
  return StageOf::kCodeRowBytes == 64 * StageOf::kUnits ? piece ^ (row & 1) << 2
                                                        : piece ^ (row & 1);
}

/// The same of activations, of which lanes read pieces 4 t + j of a unit.
__device__ constexpr int x_place(int row, int piece) {
  return piece ^ (piece >> 3 & 1) ^ (row & 1) << 1;
}

/// A thread's share of the copies of codes and scales.
template <typename StageOf, bool kMixed>
class CodeCopies {
  static constexpr int kPieces = StageOf::kCodeRowBytes / 16;  // of a row
  static constexpr int kRowsAtOnce = kWideThreads / kPieces;
  static constexpr int kRowsOfThread = kWideTileRows / kRowsAtOnce;

 public:
  __device__ CodeCopies(const WideProduct& args, const WideWork& work, int scales_at)
      : args_(args),
        work_(work),
        scales_at_(scales_at),
        policy_(evict_first_policy()),
        code_advance_(args.splits * StageOf::kCodeRowBytes),
        scale_advance_(args.splits * StageOf::kScaleRowBytes),
        tile_(work.tile) {
    start_tile();
  }

  /// Where a thread's first piece of a step's codes goes, from their start.
  static __device__ std::uint32_t place() {
    const int row = static_cast<int>(threadIdx.x) / kPieces;
    const int piece = static_cast<int>(threadIdx.x) % kPieces;
    return static_cast<std::uint32_t>(row * StageOf::kCodeRowBytes +
                                      code_place<StageOf>(row, piece) * 16);
  }

  /// Starts those of the next step; none after the last one. `codes` has place() in it, `scales`
  /// the thread's row.
  __device__ void copy_step(std::uint32_t codes, std::uint32_t scales) {
    if (tile_ >= args_.tiles) return;
    const bool there = left_ > static_cast<int>(threadIdx.x) % kPieces * kPieceCols;
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      copy_weights_and_fetch_async(codes + i * kRowsAtOnce * StageOf::kCodeRowBytes, from_[i],
                                   there, policy_);
      from_[i] += code_advance_;
    }
    if (threadIdx.x < kWideTileRows) {
      if constexpr (StageOf::kScaleRowBytes == 16) {
        ptx::copy_async_16(scales, scales_, left_ > 0);
      } else if constexpr (StageOf::kScaleRowBytes == 8) {
        ptx::copy_async_8(scales, scales_, left_ > 0);
      } else {
        ptx::copy_async_4(scales, scales_, left_ > 0);
      }
      scales_ += scale_advance_;
    }
    left_ -= work_.advance;
    if (--steps_ == 0) {
      tile_ += work_.stride;
      start_tile();
    }
  }

 private:
  static constexpr int kPieceCols = 16 * StageOf::kCols / StageOf::kCodeRowBytes;

  __device__ void start_tile() {
    if (tile_ >= args_.tiles) return;
    steps_ = work_.steps;
    left_ = args_.cols - work_.begin;
    const StreamedTile tile = tile_of<kWideTileRows, kMixed>(args_, tile_);
    const int row = static_cast<int>(threadIdx.x) / kPieces;
    const int piece = static_cast<int>(threadIdx.x) % kPieces;
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      // Nobody stores the sums of rows after the last one.
      from_[i] = row_at<kMixed>(args_, tile, row + i * kRowsAtOnce) +
                 work_.split * StageOf::kCodeRowBytes + piece * 16;
    }
    scales_ = row_at<kMixed>(args_, tile, static_cast<int>(threadIdx.x) % kWideTileRows) +
              scales_at_ + work_.split * StageOf::kScaleRowBytes;
  }

  const WideProduct& args_;
  const WideWork& work_;
  int scales_at_;
  std::uint64_t policy_;
  int code_advance_;
  int scale_advance_;
  int tile_;
  int steps_ = 0;  // of the tile, not yet begun
  int left_ = 0;   // columns from the next step's first on
  const std::byte* from_[kRowsOfThread];
  const std::byte* scales_;
};

/// The same of activations: the columns of a tile again and again.
template <typename StageOf, int kRows>
class XCopies {
  static constexpr int kPieces = StageOf::kXRowBytes / 16;  // of a row
  static constexpr int kRowsAtOnce = kWideThreads / kPieces;
  static constexpr int kRowsOfThread = (kRows + kRowsAtOnce - 1) / kRowsAtOnce;

 public:
  __device__ XCopies(const WideProduct& args, const WideWork& work)
      : args_(args),
        work_(work),
        row_(static_cast<int>(threadIdx.x) / kPieces),
        first_col_(work.begin + static_cast<int>(threadIdx.x) % kPieces * 8),
        from_(args.x + (static_cast<std::size_t>(row_) * args.cols + first_col_) * 2),
        all_steps_(work.all_steps) {}

  static __device__ std::uint32_t place() {
    const int row = static_cast<int>(threadIdx.x) / kPieces;
    const int piece = static_cast<int>(threadIdx.x) % kPieces;
    return static_cast<std::uint32_t>(row * StageOf::kXRowBytes +
                                      (piece / 16 * 16 + x_place(row, piece % 16)) * 16);
  }

  /// Starts those of the next step; none after the last one. `to` has place() in it.
  __device__ void copy_step(std::uint32_t to) {
    if (all_steps_ == 0) return;
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

template <typename Output>
struct PackedArgs : WideArgs<Output> {
  int scales_at;  // of a row
};

/// sums (16 weight rows of the warp, kRows) += the products of one step: four sums for each eight
/// activation rows, as ptx::multiply_add leaves them.
template <typename T, typename Fragments, int kRows>
__device__ inline void multiply_packed_step(float (&sums)[kRows / 2], const std::byte* stage) {
  using StageOf = Stage<Fragments, kRows>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int lane_of_row = lane % 4;
  const int row = static_cast<int>(threadIdx.x) / 32 * 16 + lane / 4;
  const std::byte* const codes = stage + StageOf::kCodesAt + row * StageOf::kCodeRowBytes;
  const std::byte* const scales = stage + StageOf::kScalesAt + row * StageOf::kScaleRowBytes;
#pragma unroll
  for (int unit = 0; unit < StageOf::kUnits; ++unit) {
    constexpr int kPieces = Fragments::kCodeBytes / 64;  // of a lane
    const int first = unit * Fragments::kCodeBytes / 16 + lane_of_row * kPieces;
    const int at = code_place<StageOf>(lane / 4, first) * 16;
    const int second = code_place<StageOf>(lane / 4, first + 1) * 16 - at;
    LaneFragments upper, lower;
    Fragments::make(codes + at, scales + unit * Fragments::kScaleBytes, lane_of_row, second, upper);
    Fragments::make(codes + 8 * StageOf::kCodeRowBytes + at,
                    scales + 8 * StageOf::kScaleRowBytes + unit * Fragments::kScaleBytes,
                    lane_of_row, second, lower);
#pragma unroll
    for (int eight = 0; eight < kRows / 8; ++eight) {
      float(&to)[4] = *reinterpret_cast<float(*)[4]>(sums + 4 * eight);
      const std::byte* const x =
          stage + (eight * 8 + lane / 4) * StageOf::kXRowBytes + unit * kUnitCols * 2;
#pragma unroll
      for (int j = 0; j < kLaneCols / 8; ++j) {
        const uint4 b =
            *reinterpret_cast<const uint4*>(x + x_place(lane / 4, lane_of_row * 4 + j) * 16);
        const std::uint32_t a0[4] = {upper[2 * j][0], lower[2 * j][0], upper[2 * j][1],
                                     lower[2 * j][1]};
        ptx::multiply_add<T>(to, a0, b.x, b.y);
        const std::uint32_t a1[4] = {upper[2 * j + 1][0], lower[2 * j + 1][0], upper[2 * j + 1][1],
                                     lower[2 * j + 1][1]};
        ptx::multiply_add<T>(to, a1, b.z, b.w);
      }
    }
  }
}

/// Up to kRows activation rows. A cluster has one tile.
template <typename T, template <typename> typename Format, int kRows, typename Output>
__global__ void __launch_bounds__(kWideThreads, 2)
    packed_kernel(const __grid_constant__ PackedArgs<Output> args) {
  using Fragments = Format<T>;
  using StageOf = Stage<Fragments, kRows>;
  using Stores = OutputStores<T, kRows, Output>;
  using Codes = CodeCopies<StageOf, Output::kMixed>;
  using Activations = XCopies<StageOf, kRows>;
  constexpr int kColumns = kWideTileRows / (Output::kMixed ? 2 : 1);  // of a tile
  constexpr int kStages = StageOf::kStages;
  constexpr std::uint32_t kStageBytes = StageOf::kBytes;
  __shared__ typename Stores::Shared stores_shared;
  extern __shared__ uint4 memory[];
  const std::uint32_t ring = ptx::shared_address(memory);
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
  Activations activations(args, work);
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
      __syncthreads();  // all copies have arrived, and the stage before is used up
      codes.copy_step(to, to + to_scales);
      activations.copy_step(to + to_x);
      commit_copies();
      multiply_packed_step<T, Fragments, kRows>(
          sums, reinterpret_cast<const std::byte*>(memory) + stage * kStageBytes);
      to = to == last ? first : to + kStageBytes;
      stage = stage + 1 < kStages ? stage + 1 : 0;
    }
    if (args.splits > 1) break;
    store_own_sums<kRows, Output::kMixed>(args, stores, tile, sums);
  }
  if (args.splits == 1) return;
  __syncthreads();  // the ring is used up
  store_sums_of_cluster<kRows, Output::kMixed>(args, work, stores, ring,
                                               reinterpret_cast<float*>(memory), sums);
}

/// Calls call(kernel, its shared bytes) with the kernel for an output and up to so many rows.
template <typename Output, typename Call>
void with_kernel(DType dtype, WeightFormat::Kind kind, std::int64_t rows, const Call& call) {
  const auto of_rows = [&]<typename T, template <typename> typename Format>() {
    const auto chosen = [&]<int kRows>() {
      call(packed_kernel<T, Format, kRows, Output>, Stage<Format<T>, kRows>::kSharedBytes);
    };
    if (rows <= 8) {
      chosen.template operator()<8>();
    } else if (rows <= 16) {
      chosen.template operator()<16>();
    } else if (rows <= 32) {
      chosen.template operator()<32>();
    } else {
      chosen.template operator()<64>();
    }
  };
  const auto of_type = [&]<typename T>() {
    if (kind == WeightFormat::Kind::kInt4) {
      of_rows.template operator()<T, Int4Fragments>();
    } else {
      of_rows.template operator()<T, Int8Fragments>();
    }
  };
  if (dtype == DType::kBFloat16) {
    of_type.template operator()<__nv_bfloat16>();
  } else if constexpr (std::is_same_v<Output, SumsOutput>) {
    of_type.template operator()<__half>();
  }
}

}  // namespace

PackedMatmul::PackedMatmul() {
  const void* probe = nullptr;
  int shared = 0;
  with_kernel<QkvOutput>(DType::kBFloat16, WeightFormat::Kind::kInt8, kMaxRows,
                         [&](auto* kernel, int bytes) {
                           probe = reinterpret_cast<const void*>(kernel);
                           shared = bytes;
                         });
  if (!kernel_features(compiled_architecture(probe), device_architecture()).hopper_products) return;
  for_each_output([]<typename Output>(const Output&) {
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      for (const auto kind : {WeightFormat::Kind::kInt8, WeightFormat::Kind::kInt4}) {
        for (const std::int64_t rows : {8, 16, 32, 64}) {
          with_kernel<Output>(dtype, kind, rows, [](auto* kernel, int bytes) {
            allow_shared_memory(reinterpret_cast<const void*>(kernel), bytes);
          });
        }
      }
    }
  });
  clusters_ = clusters_at_once(probe, shared);
}

bool PackedMatmul::fits(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
                        const ProductOutput& output) const {
  const bool type = a_dtype == DType::kBFloat16 ||
                    (a_dtype == DType::kFloat16 && std::holds_alternative<SumsOutput>(output));
  return type && (w.format() == kInt8Weights || w.format() == kInt4Weights) && rows >= 1 &&
         rows <= kMaxRows && clusters_[1] > 0 && can_stream_rows(a, w);
}

void PackedMatmul::run(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
                       const ProductOutput& output, cudaStream_t stream) const {
  // The same for mixed and unmixed tiles, so that sums are the same.
  const auto whole_tiles = static_cast<int>((w.padded_rows() + kWideTileRows - 1) / kWideTileRows);
  std::visit(
      [&]<typename Output>(const Output& out) {
        with_kernel<Output>(a_dtype, w.format().kind, rows, [&](auto* kernel, int bytes) {
          PackedArgs<Output> args{{{streamed(w, a, rows, kWideTileRows, Output::kMixed), 1}, out},
                                  static_cast<int>(w.format().scales_at(w.cols()))};
          args.splits = cluster_splits(clusters_, whole_tiles, args.cols, kFewestCols);
          const auto blocks = static_cast<unsigned>(
              args.splits > 1 ? args.tiles * args.splits : std::min(args.tiles, clusters_[1]));
          launch_clusters_early(kernel, static_cast<unsigned>(args.splits), blocks, kWideThreads,
                                static_cast<std::size_t>(bytes), stream, args);
        });
      },
      output);
}

}  // namespace zi
