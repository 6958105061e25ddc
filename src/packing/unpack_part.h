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
  /// Which codes and scales are read later on, in bytes from those that are read here: memory is
  /// asked for them early, whether they are there or not. 0: not asked.
  std::ptrdiff_t codes_ahead = 0;
  std::ptrdiff_t scales_ahead = 0;
};

/// Writes the part's bfloat16 values, (rows, columns) with `stride` elements from row to row.
using UnpackPart = void (*)(const PackedRow& row, const PackedPart& part, std::uint16_t* out,
                            std::int64_t stride);

/// The fastest way with these instructions; all write the same bits.
UnpackPart unpack_part(const WeightFormat& format, InstructionSet set);

}  // namespace zi
