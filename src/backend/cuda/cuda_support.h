#pragma once

#include <cuda_runtime.h>

#include "zero_infer/cuda_backend.h"

namespace zi {

/// Throws CudaError `call failed: name (text)` with file and line; the text of an out-of-memory
/// error says what to lower. No later call sees the error again, unless the device is lost.
[[noreturn]] void throw_cuda(cudaError_t error, const char* call, const char* file, int line);

inline cudaStream_t cuda_stream(Stream& stream) {
  return static_cast<cudaStream_t>(cuda_stream_handle(stream));
}

}  // namespace zi

/// Checks a CUDA call, in release builds too.
#define ZI_CUDA(call)                                             \
  do {                                                            \
    const cudaError_t zi_cuda_error = (call);                     \
    if (zi_cuda_error != cudaSuccess) {                           \
      ::zi::throw_cuda(zi_cuda_error, #call, __FILE__, __LINE__); \
    }                                                             \
  } while (false)

/// Checks the kernel launch just before it.
#define ZI_CUDA_LAUNCHED() ZI_CUDA(cudaGetLastError())
