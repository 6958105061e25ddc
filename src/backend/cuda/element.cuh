#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "zero_infer/dtype.h"
#include "zero_infer/error.h"

namespace zi {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

/// Rounds to nearest even.
template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

/// Four neighbours, moved by one access.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T v[4];
};

/// The tanh form: 0.5 x (1 + tanh(u)) = x / (1 + e^-2u).
__device__ __forceinline__ float gelu(float x) {
  const float u = 0.79788456f * x * (1.0f + 0.044715f * x * x);
  return x / (1.0f + expf(-2.0f * u));
}

/// Calls call(T{}) with the C++ type of a dtype.
template <typename Call>
void with_type(DType dtype, const Call& call) {
  switch (dtype) {
    case DType::kFloat32:
      return call(float{});
    case DType::kFloat16:
      return call(__half{});
    case DType::kBFloat16:
      return call(__nv_bfloat16{});
  }
  throw Error("an op was given a dtype that does not exist");
}

}  // namespace zi
