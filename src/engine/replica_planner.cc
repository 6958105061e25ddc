#include "engine/replica_planner.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "offload/placement.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// Of each block of the device tier, the other ranks' shards, which a replica takes.
std::vector<std::size_t> replica_bytes(const MemoryPlan& plan) {
  std::vector<std::size_t> bytes;
  for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
    if (plan.tiers[b] != Tier::kDevice) continue;
    bytes.push_back(plan.blocks[b].gathered_bytes() - plan.blocks[b].shard_bytes());
  }
  return bytes;
}

/// Has as many blocks replicated as fit into so many bytes, spread evenly among those that are
/// gathered: these then travel while the others compute.
void replicate(MemoryPlan& plan, std::size_t budget) {
  const std::vector<std::size_t> bytes = replica_bytes(plan);
  const std::vector<bool> chosen = choose_spread(bytes, budget);
  plan.replicas = 0;
  for (std::size_t b = 0, of_device = 0; b < plan.blocks.size(); ++b) {
    if (plan.tiers[b] != Tier::kDevice) continue;
    plan.replicated[b] = chosen[of_device];
    plan.replicas += chosen[of_device] ? bytes[of_device] : 0;
    ++of_device;
  }
}

}  // namespace

std::size_t replicas_asked_for(const RunConfig& config, std::size_t blocks, int world) {
  const auto asked = static_cast<std::size_t>(config.replicated_blocks.value_or(0));
  if (world == 1) return 0;
  if (asked > blocks) {
    throw ConfigError(
        fmt::format("--replicated-blocks {} are more than the {} of the model", asked, blocks));
  }
  if (asked > 0 && config.travel == Travel::kActivations) {
    throw ConfigError(fmt::format(
        "--replicated-blocks {} and --travel activations contradict each other: in a pass in which "
        "weights stay each rank multiplies its own shards alone",
        asked));
  }
  return asked;
}

void replicate_asked(MemoryPlan& plan, const RunConfig& config, std::size_t asked) {
  std::vector<std::size_t> bytes = replica_bytes(plan);
  if (bytes.size() < asked) {
    throw MemoryError(fmt::format(
        "--replicated-blocks {} leave device memory for the shards of {} blocks, and only blocks "
        "whose shards are there can be replicated; lower it{}",
        asked, bytes.size(), config.gpu_weight_budget ? ", or raise --gpu-weight-budget" : ""));
  }
  std::ranges::sort(bytes);
  replicate(plan, std::reduce(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(asked)));
}

void replicate_what_fits(MemoryPlan& plan, const RunConfig& config, std::size_t room) {
  const bool all_on_device = std::ranges::count(plan.tiers, Tier::kDevice) ==
                             static_cast<std::ptrdiff_t>(plan.tiers.size());
  if (plan.device_is_host || plan.all_stay() || !all_on_device) return;
  const std::size_t budget = config.gpu_weight_budget
                                 ? *config.gpu_weight_budget - plan.device_shards
                                 : std::numeric_limits<std::size_t>::max();
  const std::vector<std::size_t> bytes = replica_bytes(plan);
  const std::size_t all = std::reduce(bytes.begin(), bytes.end());
  // Where none is gathered any more, no slots are needed.
  const bool all_fit = all <= room + plan.slots && all <= budget;
  replicate(plan, all_fit ? all : std::min(room, budget));
}

}  // namespace zi
