#pragma once

#include "base/link.h"
#include "engine/engine.h"

namespace zi {

/// What this machine's links give a rank, in bytes per second, all ranks at once; 0 where a link is
/// not used:
/// - gather: received from the peers in a bare all-gather of a block's shards;
/// - copy: a bare copy from pinned memory to the device;
/// - read: a bare read of the shard file;
/// - device memory: read and written by a bare copy, the sum of both;
/// - products: weights read by bare products with one row.
using RunLimits = PerLink<double>;

/// Collective. Measures the links that the engine's plan uses, with the plan's own sizes, in well
/// under a second each. Ends the engine's passes and measures in their memory. Each partition
/// measures by itself.
RunLimits measure_run_limits(Engine& engine);

/// The same of gather, copy and read alone.
RunLimits measure_travel_limits(Engine& engine);

}  // namespace zi
