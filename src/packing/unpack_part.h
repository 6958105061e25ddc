#pragma once

#include <cstddef>
#include <cstdint>

#include "base/instruction_set.h"
#include "packing/packed_row.h"

namespace zi {

/// A rectangle of packed rows: `rows` of them from `packed` on, columns `first` (a multiple of 32)
/// to first + columns.
struct PackedPart {
  const std::byte* packed;
  std::int64_t rows;
  std::int64_t first;
  std::int64_t columns;
  /// What is read later on: for each line of codes that is read here, memory is asked for the line
  /// that is `ahead_step` bytes after the one before, from `ahead` on, whether it is there or not.
  /// A step of 0 asks for nothing new. With scales a step is a little more than a line: one line in
  /// nine of kInt4Weights, and in thirty-three of kInt8Weights, is left to the processor's fetches
  /// of neighbours.
  const std::byte* ahead = packed;
  std::ptrdiff_t ahead_step = 0;
};

/// Writes the part's values in 16 bits, (rows, columns) with `stride` elements from row to row.
using UnpackPart = void (*)(const PackedRow& row, const PackedPart& part, std::uint16_t* out,
                            std::int64_t stride);

/// The fastest way to bfloat16 or float16 with these instructions; all write the same bits.
UnpackPart unpack_part(const WeightFormat& format, InstructionSet set, DType to);

}  // namespace zi
