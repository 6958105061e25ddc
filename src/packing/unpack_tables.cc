#include <array>
#include <bit>

#include "packing/packed_row.h"
#include "packing/unpack_simd.h"

namespace zi {
namespace {

Int4Values make_values() {
  Int4Values values;
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    const float scale = float8_to_float(byte, WeightFormat::Kind::kInt4);
    for (int code = 0; code < 16; ++code) {
      const float value = (static_cast<float>(code) - kInt4Middle) * scale;  // a bfloat16 exactly
      values.of[byte][code] = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
    }
  }
  return values;
}

Int4Bytes make_bytes() {
  Int4Bytes bytes;
  for (int byte = 0; byte < 256; ++byte) {
    for (int code = 0; code < 16; ++code) {
      const std::uint16_t value = int4_values().of[byte][code];
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

const Int4Values& int4_values() {
  static const Int4Values values = make_values();
  return values;
}

const Int4Bytes& int4_bytes() {
  static const Int4Bytes bytes = make_bytes();
  return bytes;
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
