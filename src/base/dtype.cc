#include "zero_infer/dtype.h"

#include <fmt/format.h>

#include <bit>
#include <cctype>
#include <cstring>
#include <string>

#include "zero_infer/error.h"

namespace zi {
namespace {

template <typename Load>
void convert_from(Load load, void* dst, DType to, std::size_t count) {
  if (to == DType::kFloat32) {
    auto* out = static_cast<float*>(dst);
    for (std::size_t i = 0; i < count; ++i) out[i] = load(i);
  } else {
    auto* out = static_cast<std::uint16_t*>(dst);
    if (to == DType::kBFloat16) {
      for (std::size_t i = 0; i < count; ++i) out[i] = float_to_bfloat16(load(i));
    } else {
      for (std::size_t i = 0; i < count; ++i) out[i] = float_to_float16(load(i));
    }
  }
}

}  // namespace

std::size_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
  }
  return "";
}

DType parse_dtype(std::string_view text) {
  std::string lower;
  for (char c : text) lower += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (lower == "float32" || lower == "fp32" || lower == "f32") return DType::kFloat32;
  if (lower == "float16" || lower == "fp16" || lower == "f16" || lower == "half") {
    return DType::kFloat16;
  }
  if (lower == "bfloat16" || lower == "bf16") return DType::kBFloat16;
  throw ConfigError(
      fmt::format("`{}` is not a known element type; use bfloat16, float16 or float32", text));
}

float bfloat16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

std::uint16_t float_to_bfloat16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {  // NaN: rounding must not make it infinite
    return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  }
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float float16_to_float(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity, NaN
    return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  }
  if (magnitude >= 0x400u) {  // normal: the exponent's bias grows from 15 to 127
    return std::bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
  }
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  return sign != 0 ? -subnormal : subnormal;
}

std::uint16_t float_to_float16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);  // NaN stays NaN
  } else if (magnitude >= 0x47800000u) {            // 65536 and more, infinity
    half = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // normal; a carry of the rounding may reach infinity
    half = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  } else {
    // Below 2^-14: adding 0.5 leaves the value in units of 2^-24 in the sum's last bits, rounded to
    // nearest even by the addition.
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    half = std::bit_cast<std::uint32_t>(sum) - std::bit_cast<std::uint32_t>(0.5f);
  }
  return static_cast<std::uint16_t>(sign | half);
}

void convert(const void* src, DType from, void* dst, DType to, std::size_t count) {
  if (from == to) {
    if (src != dst) std::memcpy(dst, src, count * size_of(from));
    return;
  }
  if (from == DType::kFloat32) {
    const auto* in = static_cast<const float*>(src);
    convert_from([in](std::size_t i) { return in[i]; }, dst, to, count);
  } else if (const auto* in = static_cast<const std::uint16_t*>(src); from == DType::kBFloat16) {
    convert_from([in](std::size_t i) { return bfloat16_to_float(in[i]); }, dst, to, count);
  } else {
    convert_from([in](std::size_t i) { return float16_to_float(in[i]); }, dst, to, count);
  }
}

}  // namespace zi
