#pragma once

#include <array>

namespace zi {

/// Blocks of a cluster at most: a larger one may be refused.
inline constexpr int kMostSplits = 8;

/// How many clusters of 1, 2, 4, .. blocks a device runs at once, by that number.
using ClusterCounts = std::array<int, kMostSplits + 1>;

}  // namespace zi
