#pragma once

#include <cstddef>
#include <cstdint>

#include "zero_infer/weight_format.h"

namespace zi {

/// Packs values (rows, cols) into rows of a packed `format`: for each group the scale, of some
/// around the one that reaches the largest value, with the least sum of squared errors. A function
/// of the row's values alone, in one order of float32 operations: the same bytes from any thread,
/// world size, instruction set and backend. Scales of float8 make the largest value the largest
/// code; zero points are in the middle of the codes. Returns how many rows were packed: the next
/// one, if there is one, holds a value that is not finite or too large for a scale.
std::int64_t pack_rows(const float* values, std::int64_t rows, std::int64_t cols,
                       const WeightFormat& format, std::byte* out);

}  // namespace zi
