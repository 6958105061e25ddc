#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace zi {

/// A rank as the one that watches it sees it.
struct RankSilence {
  int rank = 0;
  int host = 0;  // its number, by RankHosts
  std::string host_name;
  std::chrono::milliseconds silent{0};
};

/// What rank 0 says when `lost` has been silent for too long: `host b (ranks 2 and 3) has been
/// silent for 16 s: ..`. `ranks`: all of the job; rank 0 is never silent. Those that have been
/// silent for at least `from` are named as well. Times that differ by `precision` at most are said
/// once. Hosts of equal names are told apart: their ranks are named.
std::string silence_text(const std::vector<RankSilence>& ranks, int lost,
                         std::chrono::milliseconds from, std::chrono::milliseconds precision);

}  // namespace zi
