#pragma once

#include "measure/machine_probe.h"
#include "zero_infer/run_config.h"
#include "zero_infer/world.h"

namespace zi {

/// Collective. `zero-infer limits`: measures this machine's links and memories with all ranks,
/// prints them on stdout of rank 0 (a table, or JSON with --output -), writes --output and keeps
/// them for `zero-infer plan`. Returns the exit code: 0, or 1 when the result could not be written.
/// What cannot work is refused before anything is measured, on all ranks or none: IoError for
/// --path and --output, ConfigError for the rest.
int run_limits_command(World& world, const LimitsOptions& options, const ProbeEffort& effort = {});

}  // namespace zi
