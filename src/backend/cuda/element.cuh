#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "zero_infer/dtype.h"
#include "zero_infer/error.h"
#include "zero_infer/ops.h"

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

/// Neighbours, a power of two of them, moved by accesses of up to 16 bytes.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T)) Neighbours {
  T v[kCount];
};
template <typename T>
using Four = Neighbours<T, 4>;

/// Zeros for null.
template <int kCount, typename T>
__device__ __forceinline__ Neighbours<float, kCount> load_floats(const T* from) {
  Neighbours<float, kCount> floats{};
  if (from == nullptr) return floats;
  const auto x = *reinterpret_cast<const Neighbours<T, kCount>*>(from);
#pragma unroll
  for (int i = 0; i < kCount; ++i) floats.v[i] = to_float(x.v[i]);
  return floats;
}

template <typename T, int kCount>
__device__ __forceinline__ void store_floats(T* to, const Neighbours<float, kCount>& floats) {
  Neighbours<T, kCount> x;
#pragma unroll
  for (int i = 0; i < kCount; ++i) x.v[i] = from_float<T>(floats.v[i]);
  *reinterpret_cast<Neighbours<T, kCount>*>(to) = x;
}

/// x / (1 + e^y), to some units in the last place of float32: -0 where the power overflows.
__device__ __forceinline__ float over_one_plus_exp(float x, float y) {
  return __fdividef(x, 1.0f + __expf(y));
}

/// x / (1 + e^-2u) is 0.5 x (1 + tanh(u)), the tanh form of GELU.
__device__ __forceinline__ float activated(Activation activation, float x) {
  switch (activation) {
    case Activation::kGeluTanh: {
      const float u = 0.79788456f * x * (1.0f + 0.044715f * x * x);
      return over_one_plus_exp(x, -2.0f * u);
    }
    case Activation::kGelu:
      return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case Activation::kRelu:
      return x < 0.0f ? 0.0f : x;  // NaN stays NaN
    case Activation::kSilu:
      return over_one_plus_exp(x, -x);
  }
  return x;
}

/// kWidth neighbouring elements, loaded at once.
template <std::size_t kBytes>
using Word = std::conditional_t<kBytes == 16, uint4,
                                std::conditional_t<kBytes == 4, std::uint32_t, std::uint16_t>>;

__device__ inline float2 unpack(std::uint32_t pair, const __nv_bfloat16*) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

__device__ inline float2 unpack(std::uint32_t pair, const __half*) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}

template <typename T, int kWidth>
__device__ inline void unpack_word(const Word<kWidth * sizeof(T)>& word, float (&values)[kWidth]) {
  if constexpr (kWidth == 1) {
    values[0] = to_float(*reinterpret_cast<const T*>(&word));
  } else if constexpr (sizeof(T) == 4) {
    values[0] = __uint_as_float(word.x);
    values[1] = __uint_as_float(word.y);
    values[2] = __uint_as_float(word.z);
    values[3] = __uint_as_float(word.w);
  } else {
    const std::uint32_t pairs[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = unpack(pairs[i], static_cast<const T*>(nullptr));
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    }
  }
}

template <typename T>
__device__ inline void store_four(T* to, float4 v) {
  *reinterpret_cast<Four<T>*>(to) = {
      {from_float<T>(v.x), from_float<T>(v.y), from_float<T>(v.z), from_float<T>(v.w)}};
}

/// Zeros for null.
__device__ inline float4 four_at(const float* from, std::int64_t at) {
  return from == nullptr ? make_float4(0, 0, 0, 0) : *reinterpret_cast<const float4*>(from + at);
}

__device__ inline float4 add_four(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

__host__ __device__ inline bool is_aligned(const void* pointer, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
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
