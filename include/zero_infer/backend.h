#pragma once

#include <cstdint>
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

/// Products by the host's cores, whatever the device is. Threads of their own make them, which look
/// for the next one for a while before they sleep: within a pass, products follow each other.
class HostProducts {
 public:
  virtual ~HostProducts() = default;
  /// As Ops::matmul, in host memory, with the bits of the CPU backend's. Blocks until it is done;
  /// one caller at a time, whose thread takes part.
  virtual void run(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
                   float* y) = 0;
};
/// By `threads` threads, the caller's included, on the cores of that NUMA node (-1: of any).
std::unique_ptr<HostProducts> make_host_products(int threads, int numa_node = -1);

/// The threads that products of the host's can have on that NUMA node (-1: on any), of `most`.
int host_product_threads(int most, int numa_node);

/// Threads for each of `local_size` ranks of this host: OMP_NUM_THREADS where it is set, else the
/// rank's share of the cores, at most those it is bound to and its share of the control group's CPU
/// quota, at least 1. Throws ConfigError for an OMP_NUM_THREADS that is not a number.
int threads_per_rank(int local_size);

}  // namespace zi
