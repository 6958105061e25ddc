#include "backend/cuda/tensor_map.h"

#include <cuda_runtime.h>
#include <fmt/format.h>

#include <array>
#include <cstdint>
#include <limits>

#include "backend/cuda/cuda_support.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// The driver's function, asked for by name: nothing is linked with the driver.
auto encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result{};
  ZI_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                           cudaEnableDefault, &result));
  if (result != cudaDriverEntryPointSuccess) {
    throw CudaError("the driver has no cuTensorMapEncodeTiled: update it");
  }
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

}  // namespace

CUtensorMap map_of_rows(const void* rows, int columns, int box_rows) {
  static const auto encode = encoder();
  constexpr std::uint64_t kElementBytes = 2;
  const std::array<cuuint64_t, 2> extents{static_cast<cuuint64_t>(columns),
                                          std::numeric_limits<std::int32_t>::max()};
  const std::array<cuuint64_t, 1> pitch{extents[0] * kElementBytes};
  const std::array<cuuint32_t, 2> box{64, static_cast<cuuint32_t>(box_rows)};
  const std::array<cuuint32_t, 2> steps{1, 1};
  CUtensorMap map;
  // Copies move bits: one type stands for both.
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(rows), extents.data(),
             pitch.data(), box.data(), steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw CudaError(fmt::format("cuTensorMapEncodeTiled failed: {}", static_cast<int>(result)));
  }
  return map;
}

}  // namespace zi
