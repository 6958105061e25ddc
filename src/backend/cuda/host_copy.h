#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace zi {

/// Enqueues a copy from pinned host memory to the device that is made by a kernel. The copy engine
/// takes copies in the order in which they were enqueued, of whatever stream, also behind those
/// that still wait for events; this one waits for its stream alone. Both addresses and `bytes` are
/// multiples of 16.
void copy_by_kernel(void* dst, const void* src, std::size_t bytes, cudaStream_t stream);

/// Loads the kernel, which else waits for all work of the device when it first runs.
void load_host_copy();

}  // namespace zi
