#pragma once

#include "zero_infer/run_config.h"
#include "zero_infer/world.h"

namespace zi {

/// Collective. `zero-infer limits`: measures this machine's links and memories with all ranks, says
/// them on stdout of rank 0 (a table, or JSON with --output -), writes --output and keeps them for
/// `zero-infer plan`. Returns the exit code.
int run_limits_command(World& world, const LimitsOptions& options);

}  // namespace zi
