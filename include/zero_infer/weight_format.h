#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "zero_infer/dtype.h"

namespace zi {

/// How the rows of a matrix are stored. Either element by element in a DType, or packed: a row is
/// then its columns' codes, the scales of its groups of columns, and their zero points if the format
/// has them. A row needs nothing but its own bytes, so that any run of rows is a matrix, and
/// whatever moves shards moves bytes.
///
///     packed row:  codes      cols bytes (int8), or (cols + 1) / 2: column 2 i in the low half of
///                             byte i (int4); zeros up to a multiple of 16 bytes
///                  scales     one of type `dtype` for each group
///                  zero points  a byte for each group, if `zeros`: in steps of 1 / 8
///                  zeros      up to a multiple of 16 bytes
///
/// The value of a column is scale * (code - zero). Codes of int8 are signed, and without zero points
/// zero is 0; codes of int4 are 0 .. 15, and without zero points zero is 8.
struct WeightFormat {
  enum class Kind : std::uint8_t { kElements, kInt8, kInt4 };

  Kind kind = Kind::kElements;
  DType dtype = DType::kBFloat16;  // of the elements, or of the scales
  bool zeros = false;              // packed: there are zero points
  std::int32_t group = 0;          // packed: columns that share a scale, a multiple of 16; 0: all

  constexpr WeightFormat() = default;
  /// Element by element.
  constexpr WeightFormat(DType elements) : dtype(elements) {}
  constexpr WeightFormat(Kind packed, DType scales, std::int32_t columns, bool zero_points = false)
      : kind(packed), dtype(scales), zeros(zero_points), group(columns) {}

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

/// What --weight-format int8 and int4 make.
inline constexpr WeightFormat kInt8Weights{WeightFormat::Kind::kInt8, DType::kFloat32, 0};
inline constexpr WeightFormat kInt4Weights{WeightFormat::Kind::kInt4, DType::kFloat16, 32};

/// `bfloat16`; `int8`; `int4 in groups of 64, with zero points`.
std::string describe(const WeightFormat& format);

/// The same in letters and digits: `bfloat16`, `int8f32`, `int4g64f16z`. Different formats have
/// different names.
std::string name_of(const WeightFormat& format);

}  // namespace zi
