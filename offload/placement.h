#pragma once

#include <cstddef>
#include <vector>

#include "offload/shard_store.h"

namespace zi {

/// Budgets of one rank, in bytes of block shards.
struct TierBudgets {
  std::size_t device_bytes = 0;
  std::size_t host_bytes = 0;
  bool nvme = false;  // whether what fits neither may rest on NVMe
};

/// As many units of these sizes as fit the budget, spread evenly: those that are not chosen have
/// runs between them that differ by one at most. A pure function.
std::vector<bool> choose_spread(const std::vector<std::size_t>& sizes, std::size_t budget);

/// Gives each unit its tier, fastest first within the budgets; the units that do not fit a tier are
/// spread evenly between those that do, so that resident compute hides the others' travel. All
/// shards are equally large in every family so far, but sizes may differ. Throws ConfigError with
/// the numbers when the units do not fit and `nvme` is false. A pure function: equal on every rank
/// given equal budgets.
std::vector<Tier> place_units(const std::vector<std::size_t>& shard_bytes,
                              const TierBudgets& budgets);

}  // namespace zi
