#include <utility>

#include "backend/cuda/launch.cuh"
#include "launch_chain.h"

namespace zi::test {
namespace {

constexpr unsigned kBlocks = 256;
constexpr unsigned kThreads = 256;
constexpr unsigned kValues = kBlocks * kThreads;

class DeviceValues {
 public:
  explicit DeviceValues(std::size_t count) : bytes_(count * sizeof(std::uint32_t)) {
    ZI_CUDA(cudaMalloc(&data_, bytes_));
    ZI_CUDA(cudaMemset(data_, 0, bytes_));
    ZI_CUDA(cudaDeviceSynchronize());
  }
  ~DeviceValues() { cudaFree(data_); }
  DeviceValues(const DeviceValues&) = delete;
  DeviceValues& operator=(const DeviceValues&) = delete;

  std::uint32_t* data() const { return data_; }
  std::vector<std::uint32_t> download() const {
    std::vector<std::uint32_t> values(bytes_ / sizeof(std::uint32_t));
    ZI_CUDA(cudaDeviceSynchronize());
    ZI_CUDA(cudaMemcpy(values.data(), data_, bytes_, cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  std::size_t bytes_;
  std::uint32_t* data_ = nullptr;
};

__global__ void tell_architecture(std::uint32_t* out) {
#ifdef __CUDA_ARCH__
  *out = __CUDA_ARCH__ / 10;
#endif
}

/// Reads what another block wrote, and takes its time before it writes.
__global__ void add_one(const std::uint32_t* in, std::uint32_t* out) {
  const unsigned at = blockIdx.x * kThreads + threadIdx.x;
  wait_for_previous();
  const std::uint32_t value = in[(at + kValues / 2 + kThreads) % kValues];
  const long long until = clock64() + 2000;
  while (clock64() < until) {
  }
  out[at] = value + 1;
}

}  // namespace

int architecture_that_runs() {
  const DeviceValues answer(1);
  tell_architecture<<<1, 1>>>(answer.data());
  ZI_CUDA_LAUNCHED();
  return static_cast<int>(answer.download().front());
}

int compiled_architecture_of_chain(std::string* why) {
  return compiled_architecture(reinterpret_cast<const void*>(tell_architecture), why);
}

bool chain_overlaps_launches() { return overlaps_launches(); }

std::vector<std::uint32_t> run_launch_chain(int links) {
  const DeviceValues first(kValues);
  const DeviceValues second(kValues);
  std::uint32_t* from = first.data();
  std::uint32_t* to = second.data();
  cudaStream_t stream = nullptr;
  ZI_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  for (int i = 0; i < links; ++i) {
    launch_early(add_one, kBlocks, kThreads, 0, stream, static_cast<const std::uint32_t*>(from),
                 to);
    std::swap(from, to);
  }
  ZI_CUDA(cudaStreamSynchronize(stream));
  ZI_CUDA(cudaStreamDestroy(stream));
  return (from == first.data() ? first : second).download();
}

}  // namespace zi::test
