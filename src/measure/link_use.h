#pragma once

#include <string>
#include <vector>

#include "engine/engine.h"
#include "measure/run_limits.h"

namespace zi {

/// What a pass moves over one link, on one rank, beside what the bare link can do.
struct LinkUse {
  std::string name;  // `gather`, `copy`, `read` or `weights`
  std::string what;  // the same for people
  double bytes = 0;  // a pass
  double busy = 0;   // seconds a pass that it was moving; 0: not known
  double limit = 0;  // bytes per second; 0: not measured
};

/// The links that this rank's passes used, those that moved nothing left out.
std::vector<LinkUse> link_uses(const Engine& engine, const FetchStats& fetched, double passes,
                               const RunLimits& limits);

}  // namespace zi
