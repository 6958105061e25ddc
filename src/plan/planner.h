#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/memory_plan.h"
#include "engine/memory_planner.h"
#include "engine/open_model.h"
#include "plan/pass_limit.h"
#include "plan/planned_machine.h"
#include "zero_infer/run_config.h"

namespace zi {

/// A number of lanes, and the least time of a pass with them.
struct BatchLimit {
  std::int64_t batch = 1;
  std::optional<PassLimit> limit;  // nothing: this many sequences do not fit at once
};

/// Plans runs of one model on one machine, all of them by the engine's own make_plan.
class Planner {
 public:
  /// `tokens` of each sequence. The model outlives the planner.
  Planner(const OpenModel& open, PlannedMachine machine, std::int64_t tokens);

  const PlannedMachine& machine() const { return machine_; }
  std::int64_t tokens() const { return tokens_; }

  /// As a run with this config plans. Throws MemoryError with the table when it does not fit.
  MemoryPlan plan(const RunConfig& config) const;
  /// As a run warns of it: see needless_offload.h.
  std::optional<std::string> needless_offload(const MemoryPlan& plan,
                                              const RunConfig& config) const;
  PassLimit limit(const MemoryPlan& plan, std::int64_t batch) const;

  /// The limit of a run with this many lanes; nothing when it is refused, or when its KV cache
  /// holds fewer sequences.
  std::optional<PassLimit> at(RunConfig config, std::int64_t batch) const;
  /// The most lanes for which `at` has an answer; 0: not even one.
  std::int64_t largest_batch(const RunConfig& config) const;
  /// 1, 2, 4, .. and the largest, and those of the config, ascending.
  std::vector<BatchLimit> batches(const RunConfig& config) const;
  /// Of all batches the one that is decoded fastest; nothing when none fits.
  std::optional<PassLimit> fastest(const RunConfig& config) const;

 private:
  PlanInput input(const RunConfig& config) const;

  const OpenModel* open_;
  PlannedMachine machine_;
  std::int64_t tokens_;
};

/// How many sequences of `tokens` tokens the plan's KV cache holds at once.
std::int64_t lanes_held(const MemoryPlan& plan, std::int64_t tokens);

}  // namespace zi
