#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backend/cuda/product_output.h"
#include "zero_infer/dtype.h"
#include "zero_infer/partition_layout.h"

namespace zi {

/// Products for the few rows of a decode pass, whose time is that of reading the weights once.
/// Float32 sums in an order that neither the other rows nor the launch change.
class SkinnyMatmul {
 public:
  static constexpr std::int64_t kMaxRows = 16;

  /// Asks the current device what it holds; on one with too little shared memory nothing fits.
  SkinnyMatmul();

  /// Equal 16-bit types, 1 .. kMaxRows rows, columns in multiples of 8, and `a` and all rows of w
  /// aligned to 16 bytes.
  bool fits(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w) const;

  /// The output of a (rows, w.cols()) . w^T, for what fits: all matrices in one launch.
  void run(const void* a, std::int64_t rows, const Matrices& w, const ProductOutput& output,
           cudaStream_t stream) const;

 private:
  /// Blocks that the whole device runs at once, of the kernel for up to 8 and up to 16 rows.
  int blocks_[2] = {0, 0};
};

}  // namespace zi
