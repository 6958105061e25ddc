#pragma once

#include "zero_infer/world.h"

namespace zi {

/// Collective; the first thing that ranks say to each other. Throws ConfigError on the first rank
/// that runs another zero-infer than rank 0, PeerError elsewhere: another version, or another build
/// of the same one (by the build id that the linker gave the program; by a hash of its file where
/// it has none).
void check_same_program(World& world);

}  // namespace zi
