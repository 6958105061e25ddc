#include "model/alibi.h"

#include <bit>
#include <cmath>

namespace zi {

std::vector<float> alibi_slopes(std::int64_t heads) {
  const auto power = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(heads)));
  const auto base = [](std::int64_t p) {
    return std::exp2(-std::exp2(-(std::log2(static_cast<double>(p)) - 3)));
  };
  std::vector<float> slopes;
  for (std::int64_t i = 1; i <= power; ++i) {
    slopes.push_back(static_cast<float>(std::pow(base(power), static_cast<double>(i))));
  }
  for (std::int64_t i = 1; static_cast<std::int64_t>(slopes.size()) < heads; i += 2) {
    slopes.push_back(static_cast<float>(std::pow(base(2 * power), static_cast<double>(i))));
  }
  return slopes;
}

}  // namespace zi
