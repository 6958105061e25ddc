#pragma once

#include <cstddef>
#include <cstdint>

#include "zero_infer/weight_format.h"

namespace zi {

/// The values of packed rows: out (rows, cols) of type `to` = scale * (code - zero), computed in
/// float32 and rounded once.
void unpack_rows(const std::byte* packed, std::int64_t rows, std::int64_t cols,
                 const WeightFormat& format, DType to, void* out);

/// The values without their scales: out (rows, cols) of type `to` = code - zero, which every type
/// holds exactly: a zero point has steps of 1 / 8 and |code - zero| < 32, or there is none.
void unpack_codes(const std::byte* packed, std::int64_t rows, std::int64_t cols,
                  const WeightFormat& format, DType to, void* out);

/// The scales of rows that have one each: out[i] of row i.
void row_scales(const std::byte* packed, std::int64_t rows, std::int64_t cols,
                const WeightFormat& format, float* out);

}  // namespace zi
