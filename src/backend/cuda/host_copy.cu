#include <algorithm>
#include <cstdint>

#include "backend/cuda/cuda_support.h"
#include "backend/cuda/host_copy.h"

namespace zi {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kMostBlocks = 16;  // some 20 GB/s of PCIe: beyond what a disk gives
constexpr int kLoads = 4;             // of a thread under way at once

__global__ void __launch_bounds__(kThreads)
    copy_words(const uint4* __restrict__ src, uint4* __restrict__ dst, std::size_t count) {
  const std::size_t threads = std::size_t{gridDim.x} * kThreads;
  std::size_t i = std::size_t{blockIdx.x} * kThreads + threadIdx.x;
  for (; i + (kLoads - 1) * threads < count; i += kLoads * threads) {
    uint4 words[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) words[k] = src[i + k * threads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) dst[i + k * threads] = words[k];
  }
  for (; i < count; i += threads) dst[i] = src[i];
}

}  // namespace

void copy_by_kernel(void* dst, const void* src, std::size_t bytes, cudaStream_t stream) {
  const std::size_t words = bytes / sizeof(uint4);
  if (words == 0) return;
  const auto blocks =
      static_cast<unsigned>(std::min<std::size_t>(kMostBlocks, (words + kThreads - 1) / kThreads));
  copy_words<<<blocks, kThreads, 0, stream>>>(static_cast<const uint4*>(src),
                                              static_cast<uint4*>(dst), words);
  ZI_CUDA_LAUNCHED();
}

void load_host_copy() {
  cudaFuncAttributes attributes{};
  ZI_CUDA(cudaFuncGetAttributes(&attributes, copy_words));
}

}  // namespace zi
