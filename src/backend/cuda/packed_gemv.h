#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/product_output.h"
#include "zero_infer/dtype.h"
#include "zero_infer/partition_layout.h"

namespace zi {

/// Products of packed weights with one or a few rows, whose time is that of reading the weights
/// once. The weights' values are exact: scales are applied in float32 to the sums of groups.
/// Float32 sums in an order that neither the other rows nor the launch change.
class PackedGemv {
 public:
  /// Of kInt4Weights, and of kInt8Weights: PackedMatmul is as fast for more.
  static constexpr std::int64_t kMaxInt4Rows = 1;
  static constexpr std::int64_t kMaxInt8Rows = 4;

  /// Asks the current device what it holds; on one with too little shared memory nothing fits.
  PackedGemv();

  /// Bfloat16 activations and outputs, columns in multiples of 8, and `a` and all rows of w aligned
  /// to 16 bytes. Activations must be less than 2^74.
  bool fits(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w) const;

  /// The output of a (rows, w.cols()) . w^T, for what fits: all matrices in one launch. It reads
  /// weights, biases and a batch's tables while the kernels before may still run (Ops).
  void run(const void* a, std::int64_t rows, const Matrices& w, const ProductOutput& output,
           cudaStream_t stream) const;

 private:
  int blocks_ = 0;  // that the whole device runs at once
};

}  // namespace zi
