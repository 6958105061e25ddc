#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace zi::test {

/// What cuda_launch_test asks of launch.cuh, which only nvcc reads.

/// `__CUDA_ARCH__` / 10 of the code of launch_chain.cu that the current device runs.
int architecture_that_runs();

/// The same, as compiled_architecture tells it; 0 and the reason where the driver has none to run.
int compiled_architecture_of_chain(std::string* why);

/// overlaps_launches() in launch_chain.cu.
bool chain_overlaps_launches();

/// Launches `links` kernels in a row by launch_early; each adds 1 to what the one before wrote, in
/// other blocks. The last one's values.
std::vector<std::uint32_t> run_launch_chain(int links);

}  // namespace zi::test
