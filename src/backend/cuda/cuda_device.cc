#include <fmt/format.h>
#if __has_include(<nvtx3/nvToolsExt.h>)  // a package of its own where CUDA is installed in parts
#include <nvtx3/nvToolsExt.h>
#define ZI_NVTX 1
#endif

#include <algorithm>
#include <atomic>
#include <cctype>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <fstream>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "backend/cuda/cuda_graph.h"
#include "backend/cuda/cuda_support.h"
#include "backend/cuda/host_copy.h"
#include "backend/cuda/kernel_architecture.h"
#include "backend/cuda/kernel_probe.h"
#include "backend/host/host_memory.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

constexpr const char* kPretendGpus = "ZERO_INFER_PRETEND_GPUS";
/// Threads that take the pages of one pinned buffer.
constexpr int kMostPopulateThreads = 2;  // stores pin several at once

class CudaEvent final : public Event {
 public:
  CudaEvent() { ZI_CUDA(cudaEventCreate(&event_)); }
  ~CudaEvent() override { cudaEventDestroy(event_); }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  bool reached() const override {
    const cudaError_t state = cudaEventQuery(event_);
    if (state == cudaErrorNotReady) return false;
    ZI_CUDA(state);
    return true;
  }
  void synchronize() const override { ZI_CUDA(cudaEventSynchronize(event_)); }
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Tasks of one stream, in their order; a thread of CUDA's runs them.
class StreamTasks {
 public:
  /// The next one; it stays here until it has run.
  void* add(std::function<void()> run) {
    const std::lock_guard lock(mutex_);
    while (!tasks_.empty() && tasks_.front()->done) tasks_.pop_front();
    tasks_.push_back(std::make_unique<Task>(Task{this, std::move(run)}));
    return tasks_.back().get();
  }
  static void CUDART_CB run(void* added) {
    Task& task = *static_cast<Task*>(added);
    StreamTasks& all = *task.all;
    std::exception_ptr failure;
    {
      const std::lock_guard lock(all.mutex_);
      failure = all.failure_;
    }
    if (!failure) {
      try {
        task.run();
      } catch (...) {
        failure = std::current_exception();
      }
    }
    const std::lock_guard lock(all.mutex_);
    if (!all.failure_) all.failure_ = failure;
    task.done = true;
  }
  void rethrow_failure() const {
    const std::lock_guard lock(mutex_);
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  struct Task {
    StreamTasks* all;
    std::function<void()> run;
    bool done = false;
  };
  mutable std::mutex mutex_;
  std::deque<std::unique_ptr<Task>> tasks_;
  std::exception_ptr failure_;  // the first
};

class CudaStream final : public Stream {
 public:
  /// `own_copies`: kernels copy from pinned memory, not the copy engine.
  explicit CudaStream(int priority, bool own_copies = false) : own_copies_(own_copies) {
    ZI_CUDA(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, priority));
  }
  ~CudaStream() override {
    cudaStreamSynchronize(stream_);  // whoever waited before has thrown the error
    cudaStreamDestroy(stream_);
  }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  void record(Event& event) override {
    ZI_CUDA(cudaEventRecord(dynamic_cast<CudaEvent&>(event).get(), stream_));
  }
  void wait(const Event& event) override {
    ZI_CUDA(cudaStreamWaitEvent(stream_, dynamic_cast<const CudaEvent&>(event).get()));
  }
  void enqueue(std::function<void()> task) override {
    ZI_CUDA(cudaLaunchHostFunc(stream_, StreamTasks::run, tasks_.add(std::move(task))));
  }
  void synchronize() override {
    ZI_CUDA(cudaStreamSynchronize(stream_));
    tasks_.rethrow_failure();
  }
  cudaStream_t get() const { return stream_; }
  bool own_copies() const { return own_copies_; }

 private:
  cudaStream_t stream_ = nullptr;
  bool own_copies_;
  StreamTasks tasks_;
};

bool fits_kernel(const void* dst, const void* src, std::size_t bytes) {
  const auto bits = reinterpret_cast<std::uintptr_t>(dst) | reinterpret_cast<std::uintptr_t>(src);
  return ((bits | bytes) & 15u) == 0;
}

bool is_pinned(const void* memory) {
  cudaPointerAttributes attributes{};
  ZI_CUDA(cudaPointerGetAttributes(&attributes, memory));
  return attributes.type == cudaMemoryTypeHost;
}

/// The NUMA node that the GPU hangs on, or -1.
int numa_node_of(int index) {
  char bus[32] = {};
  if (cudaDeviceGetPCIBusId(bus, sizeof(bus), index) != cudaSuccess) {
    cudaGetLastError();
    return -1;
  }
  std::string name(bus);
  std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::tolower(c); });
  std::ifstream in(fmt::format("/sys/bus/pci/devices/{}/numa_node", name));
  int node = -1;
  return in >> node ? node : -1;
}

/// Why the backend cannot use this GPU; empty when it can.
std::string unusable(int index) {
  cudaDeviceProp properties{};
  ZI_CUDA(cudaGetDeviceProperties(&properties, index));
  const int architecture = 10 * properties.major + properties.minor;
  std::string need;
  if (architecture < kLeastArchitecture) {
    need = "the CUDA backend needs 8.0 (Ampere) or newer";
  } else if (!has_code_for(architectures_of_build(), architecture)) {
    need = fmt::format("this build has kernels for {} alone: build it with CUDAARCHS={}",
                       architectures_of_build(), architecture);
  } else {
    return "";
  }
  return fmt::format("{} has compute capability {}.{}, {}", properties.name, properties.major,
                     properties.minor, need);
}

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int index) : index_(index), numa_node_(numa_node_of(index)) {
    ZI_CUDA(cudaSetDevice(index));
    cudaDeviceProp properties{};
    ZI_CUDA(cudaGetDeviceProperties(&properties, index));
    name_ = properties.name;
    if (const std::string why = unusable(index); !why.empty()) {
      throw ConfigError(why + "; use --backend cpu");
    }
    int direct = 0;
    ZI_CUDA(cudaDeviceGetAttribute(&direct, cudaDevAttrCanUseHostPointerForRegisteredMem, index));
    if (direct == 0) {
      throw ConfigError(name_ + " cannot use host pointers of pinned memory; use --backend cpu");
    }
    if (std::string why; compiled_architecture_of_backend(&why) == 0) {
      throw ConfigError(fmt::format(
          "{} cannot run the kernels of this build, which are for {}: {}; build it with "
          "CUDAARCHS={}, or use --backend cpu",
          name_, architectures_of_build(), why, device_architecture()));
    }
    ZI_CUDA(cudaDeviceGetStreamPriorityRange(&least_priority_, &greatest_priority_));
  }

  std::string name() const override { return name_; }
  bool is_host() const override { return false; }
  int numa_node() const override { return numa_node_; }

  MemoryInfo memory() const override {
    MemoryInfo info;
    ZI_CUDA(cudaMemGetInfo(&info.free_bytes, &info.total_bytes));
    return info;
  }
  MemoryInfo host_memory() const override { return read_host_memory(); }

  Buffer allocate(std::size_t bytes) override {
    if (bytes == 0) return {};
    void* data = nullptr;
    const cudaError_t error = cudaMalloc(&data, bytes);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // it is not sticky, and is reported here
      const MemoryInfo info = memory();
      throw MemoryError(
          fmt::format("{} of device memory is needed, {} of {} is free on {}; lower --batch-size, "
                      "--kv-budget or --gpu-weight-budget",
                      format_memory(static_cast<double>(bytes)),
                      format_memory(static_cast<double>(info.free_bytes)),
                      format_memory(static_cast<double>(info.total_bytes)), name_));
    }
    ZI_CUDA(error);
    return {data, bytes, [](void* memory) { cudaFree(memory); }};
  }

  Buffer allocate_pinned(std::size_t bytes) override {
    Buffer plain = take_host(bytes);
    if (bytes == 0) return plain;
    if (const cudaError_t error = pin(plain); error != cudaSuccess) {
      throw MemoryError(fmt::format(
          "{} of host memory cannot be pinned: {}; is it above a limit of the container "
          "or of the system? --backend cpu needs no pinned memory",
          format_memory(static_cast<double>(bytes)), cudaGetErrorString(error)));
    }
    return unpinning(std::move(plain));
  }

  Buffer allocate_pinned_or_plain(std::size_t bytes) override {
    Buffer plain = take_host(bytes);
    if (bytes == 0) return plain;
    if (const cudaError_t error = pin(plain); error != cudaSuccess) {
      if (!warned_.exchange(true)) {
        log_warning(
            fmt::format("no more host memory can be pinned ({}, for a buffer of {}): plain memory "
                        "is used, and copies from it are several times slower; the container or "
                        "the system limits pinned memory, or "
                        "--cpu-weight-budget is too large",
                        cudaGetErrorString(error), format_memory(static_cast<double>(bytes))));
      }
      return plain;
    }
    return unpinning(std::move(plain));
  }

  std::unique_ptr<Stream> make_stream(const std::string&, StreamPriority priority) override {
    return std::make_unique<CudaStream>(priority == StreamPriority::kFirst ? greatest_priority_
                                                                           : least_priority_);
  }
  std::unique_ptr<Stream> make_stream_of_own_copies(const std::string&) override {
    load_host_copy();
    return std::make_unique<CudaStream>(least_priority_, true);
  }
  std::unique_ptr<Event> make_event() override { return std::make_unique<CudaEvent>(); }

  double elapsed_seconds(const Event& start, const Event& end) const override {
    float milliseconds = 0;
    ZI_CUDA(cudaEventElapsedTime(&milliseconds, dynamic_cast<const CudaEvent&>(start).get(),
                                 dynamic_cast<const CudaEvent&>(end).get()));
    return static_cast<double>(milliseconds) * 1e-3;
  }

  void copy(void* dst, const void* src, std::size_t bytes, Stream& stream) override {
    if (bytes == 0) return;
    const auto& cuda = dynamic_cast<const CudaStream&>(stream);
    if (cuda.own_copies() && fits_kernel(dst, src, bytes) && is_pinned(src)) {
      copy_by_kernel(dst, src, bytes, cuda.get());
      return;
    }
    ZI_CUDA(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, cuda_stream(stream)));
  }
  std::unique_ptr<Graph> record(Stream& stream, const std::function<void()>& work) override {
    return record_graph(cuda_stream(stream), work);
  }

#ifdef ZI_NVTX
  void mark_begin(const std::string& name) override { nvtxRangePushA(name.c_str()); }
  void mark_end() override { nvtxRangePop(); }
#endif

  void zero(void* dst, std::size_t bytes, Stream& stream) override {
    if (bytes == 0) return;
    ZI_CUDA(cudaMemsetAsync(dst, 0, bytes, cuda_stream(stream)));
  }

 private:
  Buffer take_host(std::size_t bytes) const {
    const auto cores = static_cast<int>(std::thread::hardware_concurrency());
    return allocate_host(bytes, std::clamp(cores / 2, 1, kMostPopulateThreads), numa_node_);
  }

  cudaError_t pin(const Buffer& plain) const {
    ZI_CUDA(cudaSetDevice(index_));  // any thread may be here
    const cudaError_t error =
        cudaHostRegister(plain.data(), plain.bytes(), cudaHostRegisterPortable);
    if (error != cudaSuccess) cudaGetLastError();
    return error;
  }

  /// The same memory, unpinned before it is given back.
  static Buffer unpinning(Buffer plain) {
    std::byte* const data = plain.data();
    const std::size_t bytes = plain.bytes();
    auto owner = std::make_shared<Buffer>(std::move(plain));
    return {data, bytes, [owner](void* memory) mutable {
              cudaHostUnregister(memory);
              owner.reset();
            }};
  }

  std::atomic<bool> warned_{false};
  int index_;
  int numa_node_;
  std::string name_;
  int least_priority_ = 0;
  int greatest_priority_ = 0;
};

}  // namespace

int pretended_gpus() {
  const char* const text = std::getenv(kPretendGpus);
  if (text == nullptr) return 0;
  int gpus = 0;
  const char* const end = text + std::strlen(text);
  const auto [rest, error] = std::from_chars(text, end, gpus);
  if (error != std::errc() || rest != end || gpus < 1) {
    throw ConfigError(fmt::format("{} is `{}`, which is not a number of GPUs, such as 2; unset it",
                                  kPretendGpus, text));
  }
  return gpus;
}

int cuda_device_count(std::string* why, bool* loud) {
  const auto none = [&](std::string reason, bool surprise) {
    cudaGetLastError();
    if (why != nullptr) *why = std::move(reason);
    if (loud != nullptr) *loud = surprise;
    return 0;
  };
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  int driver = 0;  // stays 0 where none is installed
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  if (error == cudaErrorNoDevice || driver == 0) return none("there is no GPU or no driver", false);
  if (error != cudaSuccess) return none(cudaGetErrorString(error), true);
  for (int index = 0; index < count; ++index) {
    if (std::string reason = unusable(index); !reason.empty()) return none(std::move(reason), true);
  }
  return std::max(count, pretended_gpus());
}

std::string cuda_build_note() {
  const int compiled = compiled_architecture_of_backend();
  const int device = device_architecture();
  const bool lost = kernel_features(device, device).early_launches &&
                    !kernel_features(compiled, device).early_launches;
  if (!lost) return "";
  return fmt::format(
      "the kernels were compiled for compute capability {}.{} and the GPU has {}.{}: passes of few "
      "rows take longer than necessary; build with CUDAARCHS={}",
      compiled / 10, compiled % 10, device / 10, device % 10, device);
}

std::unique_ptr<Device> make_cuda_device(int index) {
  if (pretended_gpus() > 0) {
    int real = 0;
    ZI_CUDA(cudaGetDeviceCount(&real));
    index %= real;
  }
  return std::make_unique<CudaDevice>(index);
}

void* cuda_stream_handle(Stream& stream) {
  auto* cuda = dynamic_cast<CudaStream*>(&stream);
  if (cuda == nullptr) {
    throw Error("a CUDA operation was given a stream of another backend");
  }
  return cuda->get();
}

}  // namespace zi
