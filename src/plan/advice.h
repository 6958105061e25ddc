#pragma once

#include <string>
#include <vector>

#include "plan/planner.h"

namespace zi {

/// What would make the job faster: each line names the change and what it would give, planned and
/// divided again by the same planner. `base` is the limit at the config's largest batch.
std::vector<std::string> advice_for(const Planner& planner, const OpenModel& open,
                                    const RunConfig& config, const MemoryPlan& plan,
                                    const PassLimit& base);

}  // namespace zi
