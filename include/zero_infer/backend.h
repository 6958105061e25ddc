#pragma once

#include <memory>

#include "zero_infer/device.h"
#include "zero_infer/ops.h"

namespace zi {

/// The CPU backend: device memory is plain host memory, streams are worker threads, products are oneDNN's.
/// `threads` is how many threads an op may use.
std::unique_ptr<Device> make_cpu_device();
std::unique_ptr<Ops> make_cpu_ops(int threads);

/// Cores that this process may use divided by the ranks of this host, at least 1 (hwloc). With one rank a
/// core, MPI's binding is honoured.
int threads_per_rank(int local_size);

}  // namespace zi
