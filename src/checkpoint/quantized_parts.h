#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "checkpoint/content_samples.h"
#include "packing/packed_row.h"
#include "zero_infer/quantization.h"

namespace zi {

/// Packed rows [first, first + count) of a matrix of `all` rows, in memory at `out`.
struct RowRun {
  PackedRow row;
  std::int64_t all;
  std::int64_t first;
  std::int64_t count;
  std::byte* out;

  std::byte* at(std::int64_t i) const { return out + static_cast<std::size_t>(i) * row.bytes; }
};

/// Whether words, groups and scales run along output rows.
constexpr bool is_transposed(Quantization::Layout layout) {
  return layout == Quantization::Layout::kGptq || layout == Quantization::Layout::kAwq;
}

/// The functions below read the part of a tensor that is of a run of rows. The tensor has the shape
/// that a matrix of that many rows and columns asks for in the layout (or one element, for scales
/// and zero points of the whole matrix). Any thread. Throw IoError.

/// Puts codes where they stand in the rows. The rows are zeros before.
void read_codes(const TensorInFile& codes, Quantization::Layout layout, const RowRun& rows);

/// Puts scales, of which `group_rows` rows share one of each group, where they stand in the rows.
void read_scales(const TensorInFile& scales, Quantization::Layout layout, std::int64_t group_rows,
                 const RowRun& rows);

/// Takes the zero point of a group of the run's row `row`, unsigned: 0 .. 15 or 0 .. 255, where
/// those of bytes are moved up by the middle.
using TakeZero = std::function<void(std::int64_t row, std::int64_t group, int stored)>;

/// Of layouts of integers.
void read_zeros(const TensorInFile& zeros, Quantization::Layout layout, const RowRun& rows,
                const TakeZero& take);

}  // namespace zi
