#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "backend/cuda/cluster_counts.h"
#include "backend/cuda/product_output.h"
#include "zero_infer/dtype.h"
#include "zero_infer/partition_layout.h"

namespace zi {

/// Products of packed weights for decode passes, on Hopper: codes are read once and become 16-bit
/// values in registers, those of unpack_rows. Float32 sums in an order that follows from the shape
/// of the weights, the kind of GPU and the number of rows: up to 8, up to 16 (packed_mma.cuh), or
/// more (packed_wgmma.cuh).
class PackedMatmul {
 public:
  /// Asks the current device what it holds; where it has no code for the device nothing fits.
  PackedMatmul();

  /// kInt8Weights or kInt4Weights, activations and outputs of a 16-bit type, of float16 only
  /// SumsOutput; 1 .. 64 rows, columns in multiples of 8, and `a` and all rows of w aligned
  /// to 16 bytes; scratch memory for 64 rows of activations where
  /// there are more than 16.
  bool fits(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
            const ProductOutput& output, std::span<std::byte> scratch) const;

  /// The output of a (rows, w.cols()) . w^T, for what fits: all matrices in one launch, after one
  /// that writes `scratch` where there are more than 16 rows. It reads weights, biases and a
  /// batch's tables while the kernels before may still run (Ops).
  void run(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
           const ProductOutput& output, std::span<std::byte> scratch, cudaStream_t stream) const;

 private:
  ClusterCounts clusters_{};
};

}  // namespace zi
