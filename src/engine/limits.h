#pragma once

#include "engine/memory_plan.h"
#include "engine/model_weights.h"
#include "zero_infer/communicator.h"
#include "zero_infer/device.h"
#include "zero_infer/ops.h"
#include "zero_infer/world.h"

namespace zi {

/// What this machine's links give a rank, in bytes per second, all ranks at once; 0 where a link is
/// not used.
struct Limits {
  double gather = 0;   // received from the peers in a bare all-gather of a block's shards
  double copy = 0;     // a bare copy from pinned memory to the device
  double read = 0;     // a bare read of the shard file
  double product = 0;  // weights read by bare products with one row
  double memory = 0;   // device memory, read and written by a bare copy: the sum of both
};

/// Collective. Measures the links that the plan uses, with the plan's own sizes, in well under a
/// second each. The pass runner must be gone: its memory is taken again.
Limits measure_limits(World& world, Device& device, Ops& ops, Communicator* communicator,
                      const MemoryPlan& plan, const ModelWeights& weights);

}  // namespace zi
