#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>
#include <span>

#include "zero_infer/device.h"
#include "zero_infer/ops.h"

namespace zi {

/// Ops::sample on the GPU: only ids and log-probabilities cross the bus.
class CudaSampler {
 public:
  /// `scratch` is device memory that other work of the stream may use before and after: for rows
  /// with bias, or with penalties for new tokens.
  CudaSampler(Device& device, std::span<std::byte> scratch);
  ~CudaSampler();

  /// As Ops::sample, of rows that check_sample_rows has seen. `results` lie in pinned host memory,
  /// which kernels write.
  void sample(const float* logits, std::int64_t ld, std::int64_t vocabulary,
              std::span<const SampleRow> rows, const SampleResults& results, Stream& stream);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace zi
