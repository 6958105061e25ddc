#include "packing/valid_rows.h"

#include <algorithm>
#include <cmath>

#include "packing/packed_row.h"

namespace zi {
namespace {

bool is_valid(const std::byte* packed, const PackedRow& row) {
  const auto is_number = [](std::byte code) {
    return (std::to_integer<std::uint32_t>(code) & kNoFloat8Code) != kNoFloat8Code;
  };
  if (row.format.kind == WeightFormat::Kind::kFloat8 &&
      !std::all_of(packed, packed + row.cols, is_number)) {
    return false;
  }
  if (row.format.scale == ScaleType::kFloat8) {
    const std::byte* const scales = packed + row.scales_at;
    return std::all_of(scales, scales + row.groups, [](std::byte scale) {
      return (std::to_integer<std::int32_t>(scale) & kLastFloat8) >= kLeastFloat8;
    });
  }
  for (std::int64_t group = 0; group < row.groups; ++group) {
    if (!std::isfinite(row.scale(packed, group))) return false;
  }
  return true;
}

}  // namespace

std::int64_t valid_rows(const std::byte* packed, std::int64_t rows, std::int64_t cols,
                        const WeightFormat& format) {
  const PackedRow row(format, cols);
  for (std::int64_t r = 0; r < rows; ++r, packed += row.bytes) {
    if (!is_valid(packed, row)) return r;
  }
  return rows;
}

}  // namespace zi
