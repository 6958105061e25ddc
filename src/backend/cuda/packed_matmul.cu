#include <algorithm>
#include <type_traits>

#include "backend/cuda/packed_matmul.h"
#include "backend/cuda/packed_mma.cuh"
#include "backend/cuda/packed_wgmma.cuh"

namespace zi {
namespace {

template <typename Output>
using MmaKernel = void (*)(PackedArgs<Output>);
template <typename Output>
using WgmmaKernel = void (*)(OrderedArgs<Output>);

/// Calls call.template operator()<T, Format>() for a pair that the output has kernels for.
template <typename Output, typename Call>
void with_format(DType dtype, WeightFormat::Kind kind, const Call& call) {
  const auto of_type = [&]<typename T>() {
    if (kind == WeightFormat::Kind::kInt4) {
      call.template operator()<T, Int4Fragments>();
    } else {
      call.template operator()<T, Int8Fragments>();
    }
  };
  if (dtype == DType::kBFloat16) {
    of_type.template operator()<__nv_bfloat16>();
  } else if constexpr (std::is_same_v<Output, SumsOutput>) {
    of_type.template operator()<__half>();
  }
}

/// Calls call(kernel, its shared bytes) with the kernel for up to so many rows.
template <typename Output, typename Call>
void with_mma_kernel(DType dtype, WeightFormat::Kind kind, std::int64_t rows, const Call& call) {
  with_format<Output>(dtype, kind, [&]<typename T, template <typename> typename Format>() {
    const auto chosen = [&]<int kRows>() {
      const MmaKernel<Output> kernel = packed_mma_kernel<T, Format, kRows, Output>;
      call(kernel, PackedStage<Format<T>, kRows>::kSharedBytes);
    };
    if (rows <= 8) {
      chosen.template operator()<8>();
    } else {
      chosen.template operator()<16>();
    }
  });
}

/// The same of the kernel for more rows.
template <typename Output, typename Call>
void with_wgmma_kernel(DType dtype, WeightFormat::Kind kind, std::int64_t rows, const Call& call) {
  with_format<Output>(dtype, kind, [&]<typename T, template <typename> typename Format>() {
    const auto chosen = [&]<int kRows>() {
      const WgmmaKernel<Output> kernel = packed_wgmma_kernel<T, Format, kRows, Output>;
      call(kernel, WgmmaStage<Format<T>, kRows>::kSharedBytes + kRingAlignment);
    };
    if (rows <= 32) {
      chosen.template operator()<32>();
    } else {
      chosen.template operator()<64>();
    }
  });
}

void launch_order(const void* a, std::int64_t rows, int cols, std::byte* ordered,
                  cudaStream_t stream) {
  const int units = (cols + kUnitCols - 1) / kUnitCols;
  const auto launch = [&]<int kRows>() {
    const int pieces = units * ordered_unit_bytes(kRows) / 16;
    launch_early(order_activations<kRows>, static_cast<unsigned>(pieces / kWideThreads),
                 kWideThreads, 0, stream, static_cast<const std::byte*>(a), static_cast<int>(rows),
                 cols, units, ordered);
  };
  if (rows <= 32) {
    launch.template operator()<32>();
  } else {
    launch.template operator()<64>();
  }
}

/// Lets the kernels have their shared memory.
template <typename Output>
void prepare_kernels() {
  const auto allow = [](auto* kernel, int bytes) {
    allow_shared_memory(reinterpret_cast<const void*>(kernel), bytes);
  };
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (const auto kind : {WeightFormat::Kind::kInt8, WeightFormat::Kind::kInt4}) {
      for (const std::int64_t rows : {8, 16}) with_mma_kernel<Output>(dtype, kind, rows, allow);
      for (const std::int64_t rows : {32, 64}) with_wgmma_kernel<Output>(dtype, kind, rows, allow);
    }
  }
}

std::size_t ordered_bytes(std::int64_t cols) {
  return static_cast<std::size_t>((cols + kUnitCols - 1) / kUnitCols) *
         ordered_unit_bytes(PackedMatmul::kMaxRows);
}

}  // namespace

PackedMatmul::PackedMatmul() {
  const void* probe = nullptr;
  int shared = 0;
  with_wgmma_kernel<QkvOutput>(DType::kBFloat16, WeightFormat::Kind::kInt8, kMaxRows,
                               [&](auto* kernel, int bytes) {
                                 probe = reinterpret_cast<const void*>(kernel);
                                 shared = bytes;
                               });
  if (!kernel_features(compiled_architecture(probe), device_architecture()).hopper_products) return;
  for_each_output([]<typename Output>(const Output&) { prepare_kernels<Output>(); });
  clusters_ = clusters_at_once(probe, shared);
}

bool PackedMatmul::fits(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
                        const ProductOutput& output, std::span<std::byte> scratch) const {
  const bool type = a_dtype == DType::kBFloat16 ||
                    (a_dtype == DType::kFloat16 && std::holds_alternative<SumsOutput>(output));
  return type && (w.format() == kInt8Weights || w.format() == kInt4Weights) && rows >= 1 &&
         rows <= kMaxRows && clusters_[1] > 0 && can_stream_rows(a, w) &&
         (rows <= kMostMmaRows || ordered_bytes(w.cols()) <= scratch.size());
}

void PackedMatmul::run(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
                       const ProductOutput& output, std::span<std::byte> scratch,
                       cudaStream_t stream) const {
  const auto cols = static_cast<int>(w.cols());
  // The same for mixed and unmixed tiles, so that sums are the same.
  const auto whole_tiles = static_cast<int>((w.padded_rows() + kWideTileRows - 1) / kWideTileRows);
  const int splits = cluster_splits(clusters_, whole_tiles, cols, kFewestPackedCols);
  const bool by_warps = rows <= kMostMmaRows;
  if (!by_warps) launch_order(a, rows, cols, scratch.data(), stream);
  std::visit(
      [&]<typename Output>(const Output& out) {
        const PackedArgs<Output> args{
            {{streamed(w, a, rows, kWideTileRows, Output::kMixed), splits}, out},
            static_cast<int>(w.format().scales_at(w.cols()))};
        const auto launch = [&](auto* kernel, int bytes, const auto& of_kernel) {
          const auto blocks = static_cast<unsigned>(
              splits > 1 ? args.tiles * splits : std::min(args.tiles, clusters_[1]));
          launch_clusters_early(kernel, static_cast<unsigned>(splits), blocks, kWideThreads,
                                static_cast<std::size_t>(bytes), stream, of_kernel);
        };
        const WeightFormat::Kind kind = w.format().kind;
        if (by_warps) {
          with_mma_kernel<Output>(a_dtype, kind, rows,
                                  [&](auto* kernel, int bytes) { launch(kernel, bytes, args); });
        } else {
          with_wgmma_kernel<Output>(a_dtype, kind, rows, [&](auto* kernel, int bytes) {
            launch(kernel, bytes, OrderedArgs<Output>{args, scratch.data()});
          });
        }
      },
      output);
}

}  // namespace zi
