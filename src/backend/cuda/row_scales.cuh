#pragma once

#include <cuda_fp16.h>

#include <bit>
#include <cstdint>
#include <limits>

#include "zero_infer/weight_format.h"

namespace zi {

/// Where the scales of a row of codes are, and what they are.
struct RowScales {
  int at;        // bytes from the row's start
  int zeros_at;  // of zero points; less than zero: there are none
  int last;      // group
  int shift;     // column >> shift is its group; of a power of two of columns, or of all
  ScaleType type;
};

inline RowScales row_scales(const WeightFormat& format, std::int64_t cols) {
  return {.at = static_cast<int>(format.scales_at(cols)),
          .zeros_at = format.zeros ? static_cast<int>(format.zeros_at(cols)) : -1,
          .last = static_cast<int>(format.groups(cols)) - 1,
          .shift = format.group == 0 ? std::numeric_limits<int>::digits
                                     : std::countr_zero(static_cast<std::uint32_t>(format.group)),
          .type = format.scale};
}

/// Of a scale that is no byte.
__device__ inline float scale_from_bits(ScaleType type, std::uint32_t bits) {
  if (type == ScaleType::kFloat32) return __uint_as_float(bits);
  if (type == ScaleType::kBFloat16) return __uint_as_float(bits << 16);
  return __half2float(__ushort_as_half(static_cast<std::uint16_t>(bits)));
}

}  // namespace zi
