#pragma once

#include "zero_infer/partition_layout.h"

namespace zi {

/// Ops::interleave's slices: columns that a rank has of each matrix, side by side.
template <typename Int>
struct ColumnSlices {
  Int width[Matrices::kMost];  // 0 at the end where there are fewer
  Int sum;
};

/// Where column `col` of a row of block `block` stands in (rows, blocks * slices.sum), as
/// Ops::interleave puts it.
template <typename Index, typename Int>
__host__ __device__ inline Index interleaved_column(const ColumnSlices<Int>& slices, Index row,
                                                    Int col, Index block, Index blocks) {
  Int first = 0;  // column of the slice
  Int width = slices.width[0];
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
  for (int i = 1; i < static_cast<int>(Matrices::kMost); ++i) {
    if (col >= first + width) {
      first += width;
      width = slices.width[i];
    }
  }
  return (row * slices.sum + first) * blocks + block * width + (col - first);
}

}  // namespace zi
