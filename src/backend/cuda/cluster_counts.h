#pragma once

#include <array>

namespace zi {

/// Blocks of a cluster at most. A cluster waits until one part of the device has room for all of
/// its blocks: with seven or eight that costs more than the further places are worth (measured on
/// an H200, with 6, 7 and 8).
inline constexpr int kMostSplits = 6;

/// How many clusters of 1, 2, 3, .. blocks a device runs at once, by that number.
using ClusterCounts = std::array<int, kMostSplits + 1>;

}  // namespace zi
