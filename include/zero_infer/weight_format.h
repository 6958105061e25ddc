#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "zero_infer/dtype.h"

namespace zi {

/// The type of a packed row's scales. kFloat8 is the upper half of a float16 without its uppermost
/// bit of exponent: sign, 4 bits of exponent, 3 of mantissa. Byte b is (1 + b % 8 / 8) *
/// 2^(b / 8 % 16 - 15), of int8 codes a sixteenth of that, and less than zero from 128 on. Bytes
/// with exponent 0 are not used.
enum class ScaleType : std::uint8_t { kFloat32, kFloat16, kBFloat16, kFloat8 };

/// How the rows of a matrix are stored. Either element by element in a DType, or packed: a row is
/// then its columns' codes, the scales of its groups of columns, and their zero points if the
/// format has them. A row needs nothing but its own bytes, so that any run of rows is a matrix, and
/// whatever moves shards moves bytes.
///
///     packed row:  codes        in blocks of 16 bytes, the last one filled up with zeros
///                  scales       one for each group
///                  zero points  a byte for each group, if `zeros`: of int4 codes in steps of
///                               1 / 8, of int8 codes signed and whole
///                  zeros        up to a multiple of 16 bytes; of 32 where scales are not kFloat8
///
/// The value of a column is scale * (code - zero). Codes of int8 are signed, and without zero
/// points zero is 0; codes of int4 are 0 .. 15, and without zero points zero is 8; codes of float8
/// are numbers of 8 bits (E4M3 without infinities, https://arxiv.org/abs/2209.05433; 0x7f and 0xff
/// are none and are not used), without zero points, and their scales are no ScaleType::kFloat8. A
/// block has 16 columns of int8 or float8, a byte each, or 32 of int4: column 8 w + 2 e + h is bits
/// 4 e + 16 h .. + 3 of its word w (of 32 bits, little-endian), so that a mask and an exponent make
/// two 16-bit floats of a pair.
struct WeightFormat {
  enum class Kind : std::uint8_t { kElements, kInt8, kInt4, kFloat8 };

  Kind kind = Kind::kElements;
  DType dtype = DType::kBFloat16;         // of the elements
  ScaleType scale = ScaleType::kFloat32;  // packed
  bool zeros = false;                     // packed: there are zero points
  std::int32_t group = 0;  // packed: columns that share a scale, a multiple of 16; 0: all

  constexpr WeightFormat() = default;
  /// Element by element.
  constexpr WeightFormat(DType elements) : dtype(elements) {}
  constexpr WeightFormat(Kind packed, ScaleType scales, std::int32_t columns,
                         bool zero_points = false)
      : kind(packed), scale(scales), zeros(zero_points), group(columns) {}

  constexpr bool packed() const { return kind != Kind::kElements; }
  /// Groups of a row of `cols` columns; the last one may have fewer.
  constexpr std::int64_t groups(std::int64_t cols) const {
    return group == 0 ? 1 : (cols + group - 1) / group;
  }
  /// Where the parts of a packed row are, in bytes from its start.
  std::size_t scales_at(std::int64_t cols) const;
  std::size_t zeros_at(std::int64_t cols) const;
  /// Bytes of a row.
  std::size_t row_bytes(std::int64_t cols) const;

  bool operator==(const WeightFormat&) const = default;
};

/// Bytes of one scale.
std::size_t size_of(ScaleType type);

/// What --weight-format int8 makes: 8.25 bits a weight.
inline constexpr WeightFormat kInt8Weights{WeightFormat::Kind::kInt8, ScaleType::kFloat8, 32};
/// What --weight-format int4 makes: 4.5 bits a weight. A code less 8 has 4 significant bits and a
/// scale 4: their product is a bfloat16, exactly. The scale's sign turns the codes' range, -8 .. 7,
/// to where the values reach further.
inline constexpr WeightFormat kInt4Weights{WeightFormat::Kind::kInt4, ScaleType::kFloat8, 16};

/// `bfloat16`; `int8 in groups of 32`; `int4 in groups of 64, with zero points`; `float8`.
std::string describe(const WeightFormat& format);

/// The same in letters and digits: `bfloat16`, `int8g32f8`, `int4g64f16z`, `float8g128f32`.
/// Different formats have different names.
std::string name_of(const WeightFormat& format);

/// The packed format of that name; none for any other text.
std::optional<WeightFormat> packed_format_named(std::string_view name);

}  // namespace zi
