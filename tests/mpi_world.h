#pragma once

#include "zero_infer/world.h"

namespace zi::test {

/// The job's World in a test that runs under mpirun.
World& world();

}  // namespace zi::test
