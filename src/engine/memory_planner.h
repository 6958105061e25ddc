#pragma once

#include "engine/memory_plan.h"
#include "engine/plan_input.h"
#include "zero_infer/run_config.h"

namespace zi {

/// Plans or refuses: throws MemoryError with the table and what to change when it does not fit.
MemoryPlan make_plan(const PlanInput& input, const RunConfig& config);

}  // namespace zi
