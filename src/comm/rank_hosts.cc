#include "zero_infer/rank_hosts.h"

#include <algorithm>
#include <map>

namespace zi {

RankHosts::RankHosts(const std::vector<int>& host_numbers) {
  std::map<int, int> host_of_number;
  for (const int number : host_numbers) {
    const int host = host_of_number.try_emplace(number, count()).first->second;
    if (host == count()) ranks_of_.emplace_back();
    std::vector<int>& there = ranks_of_[static_cast<std::size_t>(host)];
    host_of_.push_back(host);
    place_of_.push_back(static_cast<int>(there.size()));
    there.push_back(static_cast<int>(host_of_.size()) - 1);
  }
}

int RankHosts::most_on_a_host() const {
  std::size_t most = 0;
  for (const auto& ranks : ranks_of_) most = std::max(most, ranks.size());
  return static_cast<int>(most);
}

}  // namespace zi
