#pragma once

#include "engine/engine.h"
#include "zero_infer/world.h"

namespace zi {

/// What this machine's links give a rank, in bytes per second, all ranks at once; 0 where a link is
/// not used.
struct RunLimits {
  double gather = 0;   // received from the peers in a bare all-gather of a block's shards
  double copy = 0;     // a bare copy from pinned memory to the device
  double read = 0;     // a bare read of the shard file
  double product = 0;  // weights read by bare products with one row
  double memory = 0;   // device memory, read and written by a bare copy: the sum of both
};

/// Collective. Measures the links that the engine's plan uses, with the plan's own sizes, in well
/// under a second each. Ends the engine's passes: their memory is taken again.
RunLimits measure_run_limits(World& world, Engine& engine);

}  // namespace zi
