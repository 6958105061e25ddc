#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/product_output.h"
#include "zero_infer/dtype.h"
#include "zero_infer/partition_layout.h"

namespace zi {

/// Products of packed weights with one or a few rows, whose time is that of reading the weights
/// once. The weights' values are exact: scales are applied in float32 to the sums of groups.
/// Float32 sums in an order that the launch does not change, nor the number of rows but for whether
/// there are more than two.
class PackedGemv {
 public:
  /// Of kInt4Weights, and of codes of a byte: PackedMatmul and GroupMatmul are as fast for more.
  static constexpr std::int64_t kMaxInt4Rows = 1;
  static constexpr std::int64_t kMaxByteRows = 4;

  /// Asks the current device what it holds; on one with too little shared memory nothing fits.
  PackedGemv();

  /// kInt4Weights, kInt8Weights, and for SumsOutput and GateOutput int8 and float8 of other
  /// programs without zero points, in groups of a power of two of 128 or more, or of whole rows.
  /// Bfloat16 activations and outputs, columns in multiples of 8, and `a` and all rows of w aligned
  /// to 16 bytes. Activations must be less than 2^67.
  bool fits(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
            const ProductOutput& output) const;

  /// The output of a (rows, w.cols()) . w^T, for what fits: all matrices in one launch. It reads
  /// weights, biases and a batch's tables while the kernels before may still run (Ops).
  void run(const void* a, std::int64_t rows, const Matrices& w, const ProductOutput& output,
           cudaStream_t stream) const;

 private:
  int blocks_ = 0;  // that the whole device runs at once
};

}  // namespace zi
