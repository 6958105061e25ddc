#include <algorithm>
#include <bit>
#include <type_traits>

#include "backend/cuda/group_matmul.h"
#include "backend/cuda/packed_launch.cuh"

namespace zi {
namespace {

using Kind = WeightFormat::Kind;

/// Groups of less than a unit's columns are handled by fours; so are those of formats whose zero
/// points the kernels for larger ones do not know.
constexpr int kSmallGroups = 4;

bool takes_small_groups(const WeightFormat& format) {
  return (format.group != 0 && format.group < kUnitCols) ||
         (format.zeros && !has_offsets(format.kind, 1));
}

template <typename Output>
constexpr bool kHasKernels =
    std::is_same_v<Output, SumsOutput> || std::is_same_v<Output, GateOutput<Activation::kSilu>>;

/// Calls call(PackedKernels{}) with those for an output, where there are.
template <typename Output, typename Call>
void with_kernels(DType dtype, Kind kind, bool small_groups, const Call& call) {
  const auto of_groups = [&]<typename T, int kGroups>() {
    if (kind == Kind::kInt4) {
      call(PackedKernels<T, GroupFragments<Kind::kInt4, kGroups>::template Of, Output>{});
    } else if (kind == Kind::kInt8) {
      call(PackedKernels<T, GroupFragments<Kind::kInt8, kGroups>::template Of, Output>{});
    } else {
      call(PackedKernels<T, GroupFragments<Kind::kFloat8, kGroups>::template Of, Output>{});
    }
  };
  const auto of_type = [&]<typename T>() {
    if (!small_groups) {
      of_groups.template operator()<T, 1>();
    } else if constexpr (std::is_same_v<Output, SumsOutput>) {
      of_groups.template operator()<T, kSmallGroups>();
    }
  };
  if constexpr (kHasKernels<Output>) {
    if (dtype == DType::kBFloat16) {
      of_type.template operator()<__nv_bfloat16>();
    } else {
      of_type.template operator()<__half>();
    }
  }
}

}  // namespace

GroupMatmul::GroupMatmul() {
  const void* probe = nullptr;
  int shared = 0;
  PackedKernels<__nv_bfloat16, GroupFragments<Kind::kInt8, 1>::Of, SumsOutput>::with_wgmma_kernel(
      kMostPackedRows, [&](auto* kernel, int bytes) {
        probe = reinterpret_cast<const void*>(kernel);
        shared = bytes;
      });
  if (!kernel_features(compiled_architecture(probe), device_architecture()).hopper_products) return;
  for_each_output([]<typename Output>(const Output&) {
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      for (const Kind kind : {Kind::kInt8, Kind::kInt4, Kind::kFloat8}) {
        for (const bool small_groups : {false, true}) {
          with_kernels<Output>(dtype, kind, small_groups,
                               [](auto kernels) { decltype(kernels)::prepare(); });
        }
      }
    }
  });
  clusters_ = clusters_at_once(probe, shared);
}

bool GroupMatmul::fits(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
                       const ProductOutput& output, std::span<std::byte> scratch) const {
  const WeightFormat& format = w.format();
  const bool small_groups = takes_small_groups(format);
  const bool groups =
      format.group == 0 || (format.group >= kUnitCols / kSmallGroups &&
                            std::has_single_bit(static_cast<std::uint32_t>(format.group)));
  const bool has_kernels = std::visit(
      [&]<typename Output>(const Output&) {
        return kHasKernels<Output> && (!small_groups || std::is_same_v<Output, SumsOutput>);
      },
      output);
  return format.packed() && format.scale != ScaleType::kFloat8 && groups && has_kernels &&
         a_dtype != DType::kFloat32 && rows >= 1 &&
         rows <= (small_groups ? kMostGroupMmaRows : kMostPackedRows) && clusters_[1] > 0 &&
         can_stream_rows(a, w) &&
         (rows <= kMostGroupMmaRows || ordered_bytes(w.cols()) <= scratch.size());
}

void GroupMatmul::run(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
                      const ProductOutput& output, std::span<std::byte> scratch,
                      cudaStream_t stream) const {
  const WeightFormat& format = w.format();
  const RowScales scales = row_scales(format, w.cols());
  const PackedProduct product{a, rows, w, scales, scratch, clusters_, stream};
  std::visit(
      [&]<typename Output>(const Output& out) {
        with_kernels<Output>(a_dtype, format.kind, takes_small_groups(format),
                             [&](auto kernels) { decltype(kernels)::launch(product, out); });
      },
      output);
}

}  // namespace zi
