#pragma once

#include <cstdint>

#include "engine/memory_plan.h"
#include "engine/plan_input.h"
#include "zero_infer/run_config.h"

namespace zi {

/// Plans activations, logits and the exchanges of products that stay; of these, `round_rows` of
/// each rank at once, or 0 for those of a pass. On the CPU backend they shrink, with the rows of a
/// pass and of logits, until a rank takes no more than 256 MiB in addition to shards, slots and KV;
/// lanes are kept.
void plan_workspaces(MemoryPlan& plan, const PlanInput& in, std::int64_t round_rows);

/// Plans what products take that the host has a share of: where this rank alone multiplies weights
/// that rest in its host's memory.
void plan_split_products(MemoryPlan& plan, const PlanInput& in, const RunConfig& config);

/// Takes that back, with a note, where no block rests on the host after all, or none could.
void drop_split_products(MemoryPlan& plan, const PlanInput& in, const RunConfig& config);

}  // namespace zi
