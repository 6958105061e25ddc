#include <algorithm>
#include <type_traits>

#include "backend/cuda/packed_matmul.h"
#include "backend/cuda/packed_mma.cuh"
#include "backend/cuda/packed_wgmma.cuh"

namespace zi {
namespace {

/// Calls call(kernel, its shared bytes) with the kernel for an output and up to so many rows.
template <typename Output, typename Call>
void with_kernel(DType dtype, WeightFormat::Kind kind, std::int64_t rows, const Call& call) {
  const auto of_rows = [&]<typename T, template <typename> typename Format>() {
    const auto chosen = [&]<int kRows>() {
      constexpr int kBytes = PackedStage<Format<T>, kRows>::kSharedBytes;
      if constexpr (kRows <= kMostMmaRows) {
        call(packed_mma_kernel<T, Format, kRows, Output>, kBytes);
      } else {
        call(packed_wgmma_kernel<T, Format, kRows, Output>, kBytes + kRingAlignment);
      }
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
          args.splits = cluster_splits(clusters_, whole_tiles, args.cols, kFewestPackedCols);
          const auto blocks = static_cast<unsigned>(
              args.splits > 1 ? args.tiles * args.splits : std::min(args.tiles, clusters_[1]));
          launch_clusters_early(kernel, static_cast<unsigned>(args.splits), blocks, kWideThreads,
                                static_cast<std::size_t>(bytes), stream, args);
        });
      },
      output);
}

}  // namespace zi
