#include <algorithm>

#include "backend/cuda/cuda_support.h"
#include "backend/cuda/kernel_probe.h"

namespace zi {
namespace {

/// Errors of a kernel that has no code for the device, or PTX alone that the driver cannot compile.
constexpr cudaError_t kNoCode[] = {cudaErrorNoKernelImageForDevice, cudaErrorInvalidDeviceFunction,
                                   cudaErrorInvalidKernelImage,     cudaErrorInvalidPtx,
                                   cudaErrorUnsupportedPtxVersion,  cudaErrorJitCompilerNotFound,
                                   cudaErrorJitCompilationDisabled, cudaErrorInvalidResourceHandle};

__global__ void probe_kernel() {}

}  // namespace

int device_architecture() {
  int device = 0, major = 0, minor = 0;
  ZI_CUDA(cudaGetDevice(&device));
  ZI_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  ZI_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return 10 * major + minor;
}

int compiled_architecture(const void* kernel, std::string* why) {
  cudaFuncAttributes attributes{};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (std::ranges::find(kNoCode, error) != std::end(kNoCode)) {
    cudaGetLastError();  // it is reported here
    if (why != nullptr) *why = cudaGetErrorString(error);
    return 0;
  }
  ZI_CUDA(error);
  // Also of machine code: the PTX that it was made from, here or in the compiler.
  return attributes.ptxVersion;
}

int compiled_architecture_of_backend(std::string* why) {
  return compiled_architecture(reinterpret_cast<const void*>(probe_kernel), why);
}

const char* architectures_of_build() { return ZI_CUDA_ARCHITECTURES; }

}  // namespace zi
