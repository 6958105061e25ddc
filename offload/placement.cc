#include "offload/placement.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// The most of these sizes that fit the budget: the smallest first.
std::size_t most_that_fit(std::vector<std::size_t> sizes, std::size_t budget) {
  std::sort(sizes.begin(), sizes.end());
  std::size_t count = 0;
  while (count < sizes.size() && sizes[count] <= budget) budget -= sizes[count++];
  return count;
}

/// Replaces a chosen unit by the nearest smaller one, which disturbs the spread least. There is one
/// unless the smallest are already chosen.
void swap_for_smaller(const std::vector<std::size_t>& sizes, std::vector<bool>& chosen) {
  const std::size_t n = sizes.size();
  for (std::size_t distance = 1; distance < n; ++distance) {
    for (std::size_t low = 0; low + distance < n; ++low) {
      const std::size_t high = low + distance;
      if (chosen[low] == chosen[high]) continue;
      const std::size_t in = chosen[low] ? low : high;
      const std::size_t out = chosen[low] ? high : low;
      if (sizes[out] >= sizes[in]) continue;
      chosen[in] = false;
      chosen[out] = true;
      return;
    }
  }
}

struct Held {
  std::size_t units = 0;
  std::size_t bytes = 0;
};

Held held_by(const std::vector<std::size_t>& sizes, const std::vector<Tier>& tiers, Tier tier) {
  Held held;
  for (std::size_t u = 0; u < sizes.size(); ++u) {
    if (tiers[u] != tier) continue;
    ++held.units;
    held.bytes += sizes[u];
  }
  return held;
}

[[noreturn]] void refuse(const std::vector<std::size_t>& sizes, const std::vector<Tier>& tiers,
                         const TierBudgets& budgets) {
  const auto memory = [](std::size_t bytes) { return format_memory(static_cast<double>(bytes)); };
  const Held left = held_by(sizes, tiers, Tier::kNvme);
  throw ConfigError(
      fmt::format("the {} block shards of a rank need {}; the device budget of {} holds {} of "
                  "them, the host budget "
                  "of {} holds {}, and {} ({}) have no place: raise --gpu-weight-budget or "
                  "--cpu-weight-budget, "
                  "give --nvme-offload-path DIR, or use more ranks",
                  sizes.size(), memory(std::accumulate(sizes.begin(), sizes.end(), std::size_t{0})),
                  memory(budgets.device_bytes), held_by(sizes, tiers, Tier::kDevice).units,
                  memory(budgets.host_bytes), held_by(sizes, tiers, Tier::kHost).units, left.units,
                  memory(left.bytes)));
}

}  // namespace

/// Choice j of k is at floor(j * n / k), so that the runs between choices, the one around the end
/// included (passes follow each other), differ by one at most. Where sizes differ, choices move to
/// smaller neighbours until the sum fits; each move makes it smaller, so this ends.
std::vector<bool> choose_spread(const std::vector<std::size_t>& sizes, std::size_t budget) {
  const std::size_t n = sizes.size();
  const std::size_t k = most_that_fit(sizes, budget);
  std::vector<bool> chosen(n, false);
  for (std::size_t j = 0; j < k; ++j) chosen[j * n / k] = true;
  const auto total = [&] {
    std::size_t sum = 0;
    for (std::size_t i = 0; i < n; ++i) sum += chosen[i] ? sizes[i] : 0;
    return sum;
  };
  while (total() > budget) swap_for_smaller(sizes, chosen);
  return chosen;
}

std::vector<Tier> place_units(const std::vector<std::size_t>& shard_bytes,
                              const TierBudgets& budgets) {
  std::vector<Tier> tiers(shard_bytes.size(), Tier::kNvme);
  std::vector<std::size_t> rest;  // units without a place on the device, and their sizes
  std::vector<std::size_t> rest_bytes;
  const std::vector<bool> on_device = choose_spread(shard_bytes, budgets.device_bytes);
  for (std::size_t u = 0; u < shard_bytes.size(); ++u) {
    if (on_device[u]) {
      tiers[u] = Tier::kDevice;
    } else {
      rest.push_back(u);
      rest_bytes.push_back(shard_bytes[u]);
    }
  }
  const std::vector<bool> on_host = choose_spread(rest_bytes, budgets.host_bytes);
  for (std::size_t i = 0; i < rest.size(); ++i) {
    if (on_host[i]) tiers[rest[i]] = Tier::kHost;
  }
  if (!budgets.nvme && held_by(shard_bytes, tiers, Tier::kNvme).units != 0) {
    refuse(shard_bytes, tiers, budgets);
  }
  return tiers;
}

}  // namespace zi
