#pragma once

#include <bit>
#include <cstdint>

#include "packing/packed_row.h"

/// The arithmetic of choosing scales and codes, of one value at a time: every backend packs with
/// these operations, in float32 and not fused, and so gets the same bytes.
namespace zi {

/// Codes less zero, and for float8 scales, of which there are few: those are tried under which the
/// value furthest from zero takes a code of magnitude `least` to `most`, were there as many.
struct Codes {
  float lowest;
  float highest;
  float least;
  float most;
};

constexpr Codes codes_of(WeightFormat::Kind kind) {
  return kind == WeightFormat::Kind::kInt4 ? Codes{-8, 7, 6, 9} : Codes{-127, 127, 113, 136};
}

/// Signs of a scale that are tried: codes of int8 reach as far both ways.
constexpr std::int32_t float8_signs(WeightFormat::Kind kind) {
  return kind == WeightFormat::Kind::kInt4 ? 2 : 1;
}

/// To a whole number, to nearest even, by adding 1.5 * 2^23: for magnitudes up to 2^22.
constexpr float rounded(float value) { return (value + 12582912.0f) - 12582912.0f; }

/// The code, less zero, of a value: `inverse` is one over the scale.
constexpr float code_of(float value, float inverse, const Codes& codes) {
  const float scaled = value * inverse;
  const float low = scaled < codes.lowest ? codes.lowest : scaled;
  return rounded(low > codes.highest ? codes.highest : low);
}

/// The largest byte without a sign whose scale is not above a magnitude; the least one below all.
constexpr std::int32_t float8_below(float magnitude, WeightFormat::Kind kind) {
  const auto bits = static_cast<std::int32_t>(std::bit_cast<std::uint32_t>(magnitude) >> 20);
  const std::int32_t byte = bits - ((127 + float8_exponent(kind)) << 3);
  return byte < kLeastFloat8 ? kLeastFloat8 : byte;
}

}  // namespace zi
