#include "plan/planner.h"

#include <algorithm>
#include <set>
#include <utility>

#include "engine/needless_offload.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// The most lanes that are tried: more are of no use on any machine.
constexpr std::int64_t kMostLanes = 1 << 16;

/// 1, 2, 4, .. below `end`.
std::set<std::int64_t> powers_below(std::int64_t end) {
  std::set<std::int64_t> powers;
  for (std::int64_t b = 1; b < end; b *= 2) powers.insert(b);
  return powers;
}

}  // namespace

Planner::Planner(const OpenModel& open, PlannedMachine machine, std::int64_t tokens)
    : open_(&open), machine_(std::move(machine)), tokens_(tokens) {}

PlanInput Planner::input(const RunConfig& config) const {
  const WeightFormats formats = weight_formats(*open_, config);
  PlanInput input;
  input.model = open_->model.get();
  input.block_format = {formats.blocks, open_->other_formats};
  input.head_format = formats.head;
  input.compute_dtype = open_->compute_dtype;
  input.world = machine_.partition(config);
  input.local_size = machine_.ranks_per_host;
  input.device_is_host = machine_.device_is_host();
  const std::size_t peers = input.world > 1 ? machine_.peers_bytes : 0;
  input.device_free = machine_.device_free - std::min(machine_.device_free, peers);
  input.host_free = machine_.host_free;
  return input;
}

MemoryPlan Planner::plan(const RunConfig& config) const { return make_plan(input(config), config); }

std::optional<std::string> Planner::needless_offload(const MemoryPlan& plan,
                                                     const RunConfig& config) const {
  return zi::needless_offload(plan, input(config), config);
}

PassLimit Planner::limit(const MemoryPlan& plan, std::int64_t batch) const {
  return pass_limit(plan, *open_->model, machine_.limits,
                    {.ranks = machine_.ranks,
                     .partition = plan.blocks.front().world(),
                     .ranks_per_host = machine_.ranks_per_host,
                     .batch = batch,
                     .tokens = tokens_});
}

std::optional<PassLimit> Planner::at(RunConfig config, std::int64_t batch) const {
  if (config.max_pass_tokens != 0 && batch > config.max_pass_tokens) return std::nullopt;
  config.batch_size = {batch};
  try {
    const MemoryPlan fitting = plan(config);
    if (lanes_held(fitting, tokens_) < batch) return std::nullopt;
    return limit(fitting, batch);
  } catch (const ConfigError&) {
    return std::nullopt;
  }
}

std::int64_t Planner::largest_batch(const RunConfig& config) const {
  if (!at(config, 1)) return 0;
  std::int64_t fits = 1;
  std::int64_t refused = 2;
  while (refused <= kMostLanes && at(config, refused)) fits = std::exchange(refused, 2 * refused);
  while (refused - fits > 1) {
    const std::int64_t middle = fits + (refused - fits) / 2;
    (at(config, middle) ? fits : refused) = middle;
  }
  return std::min(fits, kMostLanes);
}

std::vector<BatchLimit> Planner::batches(const RunConfig& config) const {
  const std::int64_t largest = largest_batch(config);
  std::set<std::int64_t> sizes = powers_below(largest);
  if (largest > 0) sizes.insert(largest);
  sizes.insert(config.batch_size.begin(), config.batch_size.end());
  std::vector<BatchLimit> batches;
  for (const std::int64_t batch : sizes) batches.push_back({batch, at(config, batch)});
  return batches;
}

std::optional<PassLimit> Planner::fastest(const RunConfig& config) const {
  const std::int64_t largest = largest_batch(config);
  std::set<std::int64_t> sizes = powers_below(largest);
  sizes.insert(largest);
  std::optional<PassLimit> best;
  for (const std::int64_t batch : sizes) {
    std::optional<PassLimit> limit = at(config, batch);
    if (limit && (!best || limit->tokens_per_second() > best->tokens_per_second())) {
      best = std::move(limit);
    }
  }
  return best;
}

std::int64_t lanes_held(const MemoryPlan& plan, std::int64_t tokens) {
  return plan.kv_pages / ceil_div(tokens, kKvPageTokens);
}

}  // namespace zi
