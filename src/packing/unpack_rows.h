#pragma once

#include <cstddef>
#include <cstdint>

#include "zero_infer/weight_format.h"

namespace zi {

/// The values of packed rows: out (rows, cols) of type `to` = scale * (code - zero), computed in
/// float32 and rounded once.
void unpack_rows(const std::byte* packed, std::int64_t rows, std::int64_t cols,
                 const WeightFormat& format, DType to, void* out);

}  // namespace zi
