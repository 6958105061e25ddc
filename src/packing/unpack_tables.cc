#include <array>

#include "packing/packed_row.h"
#include "packing/unpack_simd.h"

namespace zi {
namespace {

Int4Values make_values(DType type) {
  Int4Values values;
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    const float scale = float8_to_float(byte, WeightFormat::Kind::kInt4);
    for (int code = 0; code < 16; ++code) {
      const float value = (static_cast<float>(code) - kInt4Middle) * scale;
      values.of[byte][code] =
          type == DType::kFloat16 ? float_to_float16(value) : float_to_bfloat16(value);
    }
  }
  return values;
}

Int4Bytes make_bytes(DType type) {
  Int4Bytes bytes;
  for (int byte = 0; byte < 256; ++byte) {
    for (int code = 0; code < 16; ++code) {
      const std::uint16_t value = int4_values(type).of[byte][code];
      bytes.lower[byte][code] = static_cast<std::uint8_t>(value & 0xff);
      bytes.upper[byte][code] = static_cast<std::uint8_t>(value >> 8);
    }
  }
  return bytes;
}

Int8Scales make_scales() {
  Int8Scales scales;
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    scales.of[byte] = float8_to_float(byte, WeightFormat::Kind::kInt8);
  }
  return scales;
}

std::array<Int8Factors, 256> make_factors() {
  constexpr float kAbove = 65537;
  std::array<Int8Factors, 256> factors;
  for (std::size_t byte = 0; byte < factors.size(); ++byte) {
    const float scale = int8_scales().of[byte];
    factors[byte] = {scale * 0x1p-24f, scale * 0x1p-24f * kAbove, scale * 0x1p-8f,
                     scale * 0x1p-8f * kAbove};
  }
  return factors;
}

}  // namespace

const Int4Values& int4_values(DType type) {
  static const Int4Values values[] = {make_values(DType::kBFloat16), make_values(DType::kFloat16)};
  return values[type == DType::kFloat16 ? 1 : 0];
}

const Int4Bytes& int4_bytes(DType type) {
  static const Int4Bytes bytes[] = {make_bytes(DType::kBFloat16), make_bytes(DType::kFloat16)};
  return bytes[type == DType::kFloat16 ? 1 : 0];
}

const Int8Scales& int8_scales() {
  static const Int8Scales scales = make_scales();
  return scales;
}

const Int8Factors* int8_factors() {
  static const std::array<Int8Factors, 256> factors = make_factors();
  return factors.data();
}

}  // namespace zi
