#pragma once

#include <cstddef>
#include <cstdint>

#include "zero_infer/weight_format.h"

namespace zi {

/// How many of these packed rows hold scales and codes that are numbers: the next one, if there is
/// one, holds a scale that is not finite, a ScaleType::kFloat8 with exponent 0, or a code of float8
/// that is none.
std::int64_t valid_rows(const std::byte* packed, std::int64_t rows, std::int64_t cols,
                        const WeightFormat& format);

}  // namespace zi
