#pragma once

#include <memory>
#include <string>

#include "zero_infer/device.h"
#include "zero_infer/ops.h"

namespace zi {

/// The CUDA backend, in builds that have it: one GPU a rank, streams and events are
/// CUDA's, products are cuBLAS's.

/// How many GPUs of this process the backend can use (they must all be of compute capability 8.0 or
/// newer, and of one that this build has kernels for). 0 when there is none: `why` then says why,
/// and `loud` whether that is a surprise, because there is a GPU or a driver that cannot be used.
int cuda_device_count(std::string* why = nullptr, bool* loud = nullptr);

/// For tests of several ranks on a host with one GPU: the environment's ZERO_INFER_PRETEND_GPUS,
/// the number of GPUs that this host is taken to have; 0 where it is not set. Beyond the real ones,
/// indices begin again: ranks share a GPU, which works for one of them at a time, and NCCL sends
/// through the host's network. Right, and slow. Throws ConfigError for anything but a number
/// from 1.
int pretended_gpus();

/// The GPU of that index; it becomes the calling thread's current device. Throws ConfigError for a
/// GPU that cannot be used.
std::unique_ptr<Device> make_cuda_device(int index);

/// What this build's kernels lack on the calling thread's current device, because they were
/// compiled for an older one; empty where they lack nothing.
std::string cuda_build_note();

/// The ops of a CUDA device. Takes its workspace (cuBLAS's, partial results of attention and
/// sampling) at once. For one stream at a time: the workspace is used in its order. Throws
/// CudaError where cuBLAS cannot be loaded.
std::unique_ptr<Ops> make_cuda_ops(Device& device);

/// The cudaStream_t of a CUDA device's stream. Throws Error for a stream of another backend.
void* cuda_stream_handle(Stream& stream);

}  // namespace zi
