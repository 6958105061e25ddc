#pragma once

#include "zero_infer/world.h"

namespace zi::test {

/// The job's World in a test that runs under mpirun.
World& world();

/// Whether the program was started with --cuda: its tests are for the CUDA backend.
bool wants_cuda();

}  // namespace zi::test
