#pragma once

#include <optional>
#include <string>

#include "engine/memory_plan.h"
#include "engine/memory_planner.h"
#include "zero_infer/run_config.h"

namespace zi {

/// A line about an offload that was asked for although all blocks would fit where they run, next to
/// a KV cache of the same size, and what it costs; nothing when the offload is needed, or is meant:
/// a --gpu-weight-budget says how much may stay. `plan` is what make_plan gave for the other two.
/// On the CPU backend device memory is host memory: shards that leave it for storage are read in
/// every pass, those that leave it for the host tier are copied within the same memory.
std::optional<std::string> needless_offload(const MemoryPlan& plan, const PlanInput& input,
                                            const RunConfig& config);

}  // namespace zi
