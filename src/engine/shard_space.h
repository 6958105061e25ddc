#pragma once

#include <cstdint>
#include <filesystem>

#include "engine/model_weights.h"
#include "zero_infer/world.h"

namespace zi {

/// Collective. Refuses, before a byte is written, what the ranks of a host cannot write together:
/// throws IoError where a file system has less room than the shard files of all ranks of this host
/// that go there. `file` is this rank's, null without one.
void check_shard_space(World& world, const ShardFilePlan* file, const LoadOptions& options);

}  // namespace zi
