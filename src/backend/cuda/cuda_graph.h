#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <memory>

#include "zero_infer/device.h"

namespace zi {

/// Device::record on a CUDA stream. Throws what `work` throws, and CudaError where it cannot be
/// part of a graph; the stream then is as it was before, and no CUDA error is left for later calls.
std::unique_ptr<Graph> record_graph(cudaStream_t stream, const std::function<void()>& work);

/// Makes a graph that can be launched, and destroys `graph`. Throws CudaError, as above.
std::unique_ptr<Graph> instantiate_graph(cudaGraph_t graph);

}  // namespace zi
