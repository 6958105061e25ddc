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

/// Products of weights that other programs have packed (GPTQ, AWQ, compressed-tensors, FP8), for
/// decode passes on Hopper: codes are read once, and become differences from their zero points in
/// registers. Scales are applied to the float32 sums of groups, so that the weights' values are
/// exact. The order of sums follows from the shape of the weights, the kind of GPU and the number
/// of rows: up to 8, 16, 32 or 64.
class GroupMatmul {
 public:
  /// Asks the current device what it holds; where it has no code for the device nothing fits.
  GroupMatmul();

  /// Packed weights without scales of a byte, in groups of 32, of 64, or of a power of two of 128
  /// or more, or of whole rows; activations and outputs of a 16-bit type; SumsOutput or GateOutput,
  /// 1 .. 64 rows. Groups of 32 and 64, and int8 with zero points: SumsOutput alone, 1 .. 32 rows.
  /// Columns in multiples of 8, and `a` and all rows of w aligned to 16 bytes; scratch memory for
  /// 64 rows of activations where there are more than 32.
  bool fits(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
            const ProductOutput& output, std::span<std::byte> scratch) const;

  /// As PackedMatmul::run.
  void run(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
           const ProductOutput& output, std::span<std::byte> scratch, cudaStream_t stream) const;

 private:
  ClusterCounts clusters_{};
};

}  // namespace zi
