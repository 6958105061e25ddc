#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace zi {

/// Element types of weights, activations and the KV cache.
enum class DType : std::uint8_t { kFloat32, kFloat16, kBFloat16 };

/// Bytes of one element.
std::size_t size_of(DType dtype);

/// `float32`, `float16`, `bfloat16`.
std::string_view name_of(DType dtype);

/// Reads `float32|fp32|f32`, `float16|fp16|f16|half`, `bfloat16|bf16`, in any case; throws
/// ConfigError.
DType parse_dtype(std::string_view text);

/// IEEE conversions of one element; to a narrower type they round to nearest even.
float bfloat16_to_float(std::uint16_t bits);
std::uint16_t float_to_bfloat16(float value);
float float16_to_float(std::uint16_t bits);
std::uint16_t float_to_float16(float value);

/// Converts `count` contiguous elements; `dst` may equal `src` only when the types are the same.
void convert(const void* src, DType from, void* dst, DType to, std::size_t count);

}  // namespace zi
