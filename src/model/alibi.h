#pragma once

#include <cstdint>
#include <vector>

namespace zi {

/// The slope of each head (Press et al. 2021, with its rule for head counts that are not a power of
/// two): the bias of a score is slope * key position.
std::vector<float> alibi_slopes(std::int64_t heads);

}  // namespace zi
