#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace zi {

/// On which host each of some ranks runs. Ranks of one host reach each other through its memory or
/// its links between GPUs, all others over the network. A plain value, the same on every rank.
class RankHosts {
 public:
  /// Of each rank any number that only ranks of its host have.
  explicit RankHosts(const std::vector<int>& host_numbers);
  /// All ranks on one host.
  static RankHosts one(int ranks) {
    return RankHosts(std::vector<int>(static_cast<std::size_t>(ranks), 0));
  }

  int ranks() const { return static_cast<int>(host_of_.size()); }
  /// Of hosts.
  int count() const { return static_cast<int>(ranks_of_.size()); }
  /// Hosts are numbered from 0, by their lowest ranks.
  int host_of(int rank) const { return host_of_.at(static_cast<std::size_t>(rank)); }
  /// Ascending.
  std::span<const int> ranks_of(int host) const {
    return ranks_of_.at(static_cast<std::size_t>(host));
  }
  /// The ranks of this rank's host, itself among them.
  std::span<const int> beside(int rank) const { return ranks_of(host_of(rank)); }
  /// The rank's place among those of its host.
  int place_of(int rank) const { return place_of_.at(static_cast<std::size_t>(rank)); }
  /// Ranks of the host that has most.
  int most_on_a_host() const;

 private:
  std::vector<int> host_of_;
  std::vector<int> place_of_;
  std::vector<std::vector<int>> ranks_of_;
};

}  // namespace zi
