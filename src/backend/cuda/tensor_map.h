#pragma once

#include <cuda.h>

#include <cstddef>

namespace zi {

/// Describes rows of 16-bit elements in device memory, one after the other, to the copies of boxes
/// on Hopper (ptx::copy_box): a box is 64 elements of `box_rows` rows, which lie in shared memory
/// as ptx::describe_rows says. `rows` is aligned to 16 bytes, and `columns` a multiple of 64. How
/// many rows there are is not said: boxes must lie in what the caller owns. Throws CudaError.
CUtensorMap map_of_rows(const void* rows, int columns, int box_rows);

}  // namespace zi
