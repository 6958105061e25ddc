#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "backend/cuda/cuda_support.h"
#include "backend/cuda/kernel_architecture.h"
#include "backend/cuda/kernel_probe.h"

namespace zi {

/// Of the file that includes this: files of one program are compiled for different architectures.
static __global__ void architecture_probe() {}

/// Hopper and newer start the blocks of a kernel while the kernel before it in the stream still
/// runs (programmatic dependent launch, CUDA Programming Guide): a decoding pass is some hundred
/// kernels of a few microseconds, whose starts would else add up. Only for kernels that wait for
/// the one before: those of this file do not where they were compiled for an older architecture.
/// Functions that ask are static, as this one is: each file has its own answer.
static bool overlaps_launches() {
  static const bool overlaps = [] {
    const auto* const probe = reinterpret_cast<const void*>(architecture_probe);
    return kernel_features(compiled_architecture(probe), device_architecture()).early_launches;
  }();
  return overlaps;
}

/// launch_early for clusters of `cluster` neighbouring blocks.
template <typename... Params, typename... Args>
static void launch_clusters_early(void (*kernel)(Params...), unsigned cluster, dim3 grid,
                                  dim3 block, std::size_t shared_bytes, cudaStream_t stream,
                                  Args&&... args) {
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  if (overlaps_launches()) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {cluster, 1, 1};
  }
  ZI_CUDA(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...));
}

/// Launches a kernel that may start early; it must call wait_for_previous before it writes, and
/// before it reads what an earlier kernel may have written (Ops says what none has).
template <typename... Params, typename... Args>
static void launch_early(void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared_bytes,
                         cudaStream_t stream, Args&&... args) {
  launch_clusters_early(kernel, 1, grid, block, shared_bytes, stream, std::forward<Args>(args)...);
}

/// Lets the blocks of the next kernel start where there is room, once all blocks of this one have
/// come here. Call it before long work that a block does ahead of waiting.
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/// Lets the next kernel start, then waits until all earlier work of the stream is done and visible.
/// Every block must come here: the next kernel takes the end of this one for the end of all earlier
/// work.
__device__ __forceinline__ void wait_for_previous() {
  let_next_start();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace zi
