#include "backend/cuda/cuda_support.h"

#include <fmt/format.h>

#include "zero_infer/error.h"

namespace zi {

void throw_cuda(cudaError_t error, const char* call, const char* file, int line) {
  std::string text = fmt::format("{} failed: {} ({}) at {}:{}", call, cudaGetErrorName(error),
                                 cudaGetErrorString(error), file, line);
  if (error == cudaErrorMemoryAllocation) {
    text +=
        "; another process may hold memory of this GPU: lower --kv-budget or --gpu-weight-budget";
  }
  // The error is reported here. If it stayed, the next check of a launch would throw it again,
  // after somebody has caught this one and continued. Errors that no later call survives come back
  // by themselves.
  cudaGetLastError();
  throw CudaError(text);
}

}  // namespace zi
