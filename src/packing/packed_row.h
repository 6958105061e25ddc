#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "zero_infer/weight_format.h"

namespace zi {

/// Steps of a zero point of int4 between two codes.
inline constexpr float kZeroPointSteps = 8;
/// The zero point of int4 codes where the format has none.
inline constexpr float kInt4Middle = 8;

/// Columns of a block of codes.
constexpr std::int64_t block_columns(WeightFormat::Kind kind) {
  return kind == WeightFormat::Kind::kInt4 ? 32 : 16;
}

/// ScaleType::kFloat8 without the sign: from the least byte up to the last.
inline constexpr std::int32_t kLeastFloat8 = 8;
inline constexpr std::int32_t kLastFloat8 = 127;

/// The exponent of bytes 0 to 7.
constexpr int float8_exponent(WeightFormat::Kind kind) {
  return kind == WeightFormat::Kind::kInt8 ? -19 : -15;
}

/// A byte of ScaleType::kFloat8: its bits are those of a float32 but for the exponent's bias.
constexpr float float8_to_float(std::uint32_t bits, WeightFormat::Kind kind) {
  return std::bit_cast<float>(((bits & 0x80u) << 24) + ((bits & 0x7fu) << 20) +
                              (static_cast<std::uint32_t>(127 + float8_exponent(kind)) << 23));
}

/// A zero point's byte.
constexpr float zero_point_of(std::uint8_t byte, WeightFormat::Kind kind) {
  return kind == WeightFormat::Kind::kInt4 ? static_cast<float>(byte) / kZeroPointSteps
                                           : static_cast<float>(static_cast<std::int8_t>(byte));
}

/// The magnitude of codes of float8 that are no numbers.
inline constexpr std::uint32_t kNoFloat8Code = 0x7f;

/// A code of float8: its bits are those of a float32 but for the exponent's bias, and codes of the
/// least exponent are multiples of 2^-9.
constexpr float e4m3_to_float(std::uint32_t code) {
  const std::uint32_t magnitude = code & 0x7fu;
  const float small = static_cast<float>(static_cast<std::int32_t>(magnitude)) * (1.0f / 512);
  const std::uint32_t bits = magnitude < 8 ? std::bit_cast<std::uint32_t>(small)
                                           : (magnitude << 20) + (std::uint32_t{120} << 23);
  return std::bit_cast<float>(bits | (code & 0x80u) << 24);
}

/// Where the parts of the rows of a packed matrix are, worked out once.
struct PackedRow {
  PackedRow(const WeightFormat& row_format, std::int64_t columns)
      : format(row_format),
        cols(columns),
        groups(row_format.groups(columns)),
        group(row_format.group == 0 ? columns : row_format.group),
        bytes(row_format.row_bytes(columns)),
        scale_bytes(size_of(row_format.scale)),
        scales_at(row_format.scales_at(columns)),
        zeros_at(row_format.zeros_at(columns)) {}

  float scale(const std::byte* row, std::int64_t index) const {
    const std::byte* at = row + scales_at + static_cast<std::size_t>(index) * scale_bytes;
    if (format.scale == ScaleType::kFloat8) {
      return float8_to_float(std::to_integer<std::uint32_t>(*at), format.kind);
    }
    if (format.scale == ScaleType::kFloat32) {
      float value;
      std::memcpy(&value, at, sizeof value);
      return value;
    }
    std::uint16_t bits;
    std::memcpy(&bits, at, sizeof bits);
    return format.scale == ScaleType::kFloat16 ? float16_to_float(bits) : bfloat16_to_float(bits);
  }

  /// The code whose value is zero.
  float zero(const std::byte* row, std::int64_t index) const {
    if (format.zeros) {
      const std::byte byte = row[zeros_at + static_cast<std::size_t>(index)];
      return zero_point_of(std::to_integer<std::uint8_t>(byte), format.kind);
    }
    return format.kind == WeightFormat::Kind::kInt4 ? kInt4Middle : 0.0f;
  }

  WeightFormat format;
  std::int64_t cols;
  std::int64_t groups;
  std::int64_t group;  // columns of one; the last may have fewer
  std::size_t bytes;
  std::size_t scale_bytes;  // of one
  std::size_t scales_at;
  std::size_t zeros_at;
};

}  // namespace zi
