#pragma once

#include <cstddef>
#include <cstdint>

#include "zero_infer/weight_format.h"

namespace zi {

/// How many of these packed rows hold scales that are numbers: the next one, if there is one, holds
/// a scale that is not finite, or a ScaleType::kFloat8 with exponent 0.
std::int64_t valid_rows(const std::byte* packed, std::int64_t rows, std::int64_t cols,
                        const WeightFormat& format);

}  // namespace zi
