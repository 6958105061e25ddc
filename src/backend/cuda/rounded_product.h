#pragma once

#include <cublas_v2.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "zero_infer/activation.h"
#include "zero_infer/dtype.h"

namespace zi {

/// Products of many rows whose sums, which are float32, go to memory in 16 bits, after a bias and
/// an activation where there are any; by cuBLASLt. In prompts, float32 sums would take longer to
/// travel than most of what is done with them.
class RoundedProduct {
 public:
  /// y (rows, ld), columns [0, w_rows) = act(a (rows, cols) . w (w_rows, cols)^T + bias (w_rows)).
  /// All of one 16-bit type, in device memory; bias may be null.
  struct Shape {
    const void* a = nullptr;
    const void* w = nullptr;
    const void* bias = nullptr;
    void* y = nullptr;
    std::int64_t rows = 0;
    std::int64_t w_rows = 0;
    std::int64_t cols = 0;
    std::int64_t ld = 0;
    DType type = DType::kBFloat16;
    std::optional<Activation> activation = {};
  };

  /// `handle` stays the caller's, as does `workspace`, device memory that is used in the stream's
  /// order.
  RoundedProduct(cublasHandle_t handle, std::span<std::byte> workspace);
  ~RoundedProduct();
  RoundedProduct(const RoundedProduct&) = delete;
  RoundedProduct& operator=(const RoundedProduct&) = delete;

  /// Whether cuBLASLt has the activation.
  static bool has(Activation activation);

  /// Enqueues it. Returns false and does nothing where cuBLASLt has no kernel for the shape.
  bool run(const Shape& shape, cudaStream_t stream);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace zi
