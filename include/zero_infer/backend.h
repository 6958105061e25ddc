#pragma once

#include <memory>

#include "zero_infer/device.h"
#include "zero_infer/ops.h"

namespace zi {

/// The CPU backend: device memory is plain host memory, streams are worker threads (cpu_stream.h),
/// products are its own where the CPU has AVX2, and oneDNN's in float32. `threads` is how many
/// threads an op may use; one Ops may serve several streams; its kernels then take turns.
/// `copy_threads` threads share a large copy.
std::unique_ptr<Device> make_cpu_device(int copy_threads = 1);
std::unique_ptr<Ops> make_cpu_ops(int threads);

/// Threads for each of `local_size` ranks of this host: OMP_NUM_THREADS where it is set, else the
/// rank's share of the cores, at most those it is bound to and its share of the control group's CPU
/// quota, at least 1. Throws ConfigError for an OMP_NUM_THREADS that is not a number.
int threads_per_rank(int local_size);

}  // namespace zi
