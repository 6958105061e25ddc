#pragma once

#include <cstddef>

#include "engine/memory_plan.h"
#include "zero_infer/run_config.h"

namespace zi {

/// Which blocks every rank holds whole, for memory_planner: blocks whose shards rest on the device.

/// The number that --replicated-blocks gives, of so many blocks and ranks; 0: none, or what fits.
/// Throws ConfigError where there are not so many, or where no pass gathers.
std::size_t replicas_asked_for(const RunConfig& config, std::size_t blocks, int world);

/// Has as many blocks of a plan with tiers replicated. Throws MemoryError where fewer rest on the
/// device.
void replicate_asked(MemoryPlan& plan, const RunConfig& config, std::size_t asked);

/// The same of as many as fit into `room` bytes on the device, and the slots if then none is
/// gathered any more; slots are to be planned anew. On the CPU backend none: ranks share the host's
/// memory, which is to hold the model once. And none beside offloaded blocks: shards that rest on a
/// device save more than replicas do, so that these have taken the memory.
void replicate_what_fits(MemoryPlan& plan, const RunConfig& config, std::size_t room);

}  // namespace zi
