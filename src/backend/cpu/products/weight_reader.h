#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "packing/unpack_part.h"
#include "zero_infer/partition_layout.h"

namespace zi {

/// Products read weights in 16 bits, and whole blocks of so many columns.
inline constexpr std::int64_t kBlockColumns = 32;
/// Columns of a line of codes, which are best read together.
inline constexpr std::int64_t kInt8PieceColumns = 64;
inline constexpr std::int64_t kInt4PieceColumns = 128;
inline constexpr std::int64_t kMostPieceColumns = 128;

/// Rows of a matrix as bfloat16s or float16s in whole blocks of columns: where they lie, or copied
/// or unpacked part by part.
class WeightReader {
 public:
  /// For weights of a 16-bit type, and packed ones, unpacked to it with these instructions.
  WeightReader(const RowBlockMatrix& w, DType type, InstructionSet set);
  WeightReader(const WeightReader&) = delete;
  WeightReader& operator=(const WeightReader&) = delete;

  const std::int64_t cols;
  const std::int64_t padded_cols;  // with those that fill the last block
  const std::int64_t row_bytes;
  /// Columns that are best read together: of packed weights, a line of codes.
  const std::int64_t piece_columns;
  /// What a row takes for them, with its scales.
  const std::int64_t piece_bytes;
  /// Whether rows can be read where they are.
  const bool in_place;
  /// Packed rows, which an instruction set may unpack itself: kInt8Weights, kInt4Weights, and other
  /// formats of the same codes. Plain members, since files of one set
  /// call no inline function of others.
  enum class Packing { kNone, kInt8, kInt4, kOtherInt8, kOtherInt4, kOtherFloat8 };
  const Packing packing;
  const PackedRow* packed_row = nullptr;  // where weights are packed

  /// Columns part.first to part.first + part.columns of the rows from part.packed on, whatever
  /// their format, to out (height, stride): zeros fill the last block of columns, and rows up to
  /// `height`.
  void read(const PackedPart& part, std::int64_t height, std::uint16_t* out,
            std::int64_t stride) const;

 private:
  std::optional<PackedRow> packed_;
  UnpackPart unpack_ = nullptr;
};

}  // namespace zi
