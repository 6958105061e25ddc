#include <algorithm>
#include <type_traits>

#include "backend/cuda/packed_launch.cuh"
#include "backend/cuda/packed_matmul.h"

namespace zi {
namespace {

/// Calls call(PackedKernels{}) with those for an output.
template <typename Output, typename Call>
void with_kernels(DType dtype, WeightFormat::Kind kind, const Call& call) {
  const auto of_type = [&]<typename T>() {
    if (kind == WeightFormat::Kind::kInt4) {
      call(PackedKernels<T, Int4Fragments, Output>{});
    } else {
      call(PackedKernels<T, Int8Fragments, Output>{});
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
  PackedKernels<__nv_bfloat16, Int8Fragments, QkvOutput>::with_wgmma_kernel(
      kMostPackedRows, [&](auto* kernel, int bytes) {
        probe = reinterpret_cast<const void*>(kernel);
        shared = bytes;
      });
  if (!kernel_features(compiled_architecture(probe), device_architecture()).hopper_products) return;
  for_each_output([]<typename Output>(const Output&) {
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      for (const auto kind : {WeightFormat::Kind::kInt8, WeightFormat::Kind::kInt4}) {
        with_kernels<Output>(dtype, kind, [](auto kernels) { decltype(kernels)::prepare(); });
      }
    }
  });
  clusters_ = clusters_at_once(probe, shared);
}

bool PackedMatmul::fits(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
                        const ProductOutput& output, std::span<std::byte> scratch) const {
  const bool type = a_dtype == DType::kBFloat16 ||
                    (a_dtype == DType::kFloat16 && std::holds_alternative<SumsOutput>(output));
  return type && (w.format() == kInt8Weights || w.format() == kInt4Weights) && rows >= 1 &&
         rows <= kMostPackedRows && clusters_[1] > 0 && can_stream_rows(a, w) &&
         (rows <= ValueFragments::kMostMmaRows || ordered_bytes(w.cols()) <= scratch.size());
}

void PackedMatmul::run(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
                       const ProductOutput& output, std::span<std::byte> scratch,
                       cudaStream_t stream) const {
  const RowScales scales = row_scales(w.format(), w.cols());
  const PackedProduct product{a, rows, w, scales, scratch, clusters_, stream};
  std::visit(
      [&]<typename Output>(const Output& out) {
        with_kernels<Output>(a_dtype, w.format().kind,
                             [&](auto kernels) { decltype(kernels)::launch(product, out); });
      },
      output);
}

}  // namespace zi
