#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/cluster_counts.h"
#include "backend/cuda/product_output.h"
#include "zero_infer/dtype.h"
#include "zero_infer/partition_layout.h"

namespace zi {

/// Products for decode passes of some dozen rows, on Hopper, and of up to 128 with several matrices
/// that are not too large, for each of which cuBLAS takes a launch; a single or a large one it
/// multiplies in a tenth less time then. Float32 sums in an order that follows from the shape of
/// the weights and the kind of GPU: the other rows do not change it.
class WideMatmul {
 public:
  static constexpr std::int64_t kMaxRows = 128;
  static constexpr std::int64_t kMaxRowsOfAny = 64;

  /// Asks the current device what it holds; where it has no code for the device nothing fits.
  WideMatmul();

  /// Equal 16-bit types, 1 .. kMaxRowsOfAny rows, or kMaxRows with several matrices of up to 2^27
  /// weights together, columns in multiples of 8, and `a` and all rows of w aligned to 16 bytes.
  bool fits(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w) const;

  /// The output of a (rows, w.cols()) . w^T, for what fits: all matrices in one launch. It reads
  /// weights, biases and a batch's tables while the kernels before may still run (Ops).
  void run(const void* a, std::int64_t rows, const Matrices& w, const ProductOutput& output,
           cudaStream_t stream) const;

 private:
  ClusterCounts clusters_{};
};

}  // namespace zi
