#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "zero_infer/dtype.h"
#include "zero_infer/ops.h"

namespace zi {

/// Operations of Ops that bring columns of products together; the same contracts.

void cuda_interleave(const void* parts, DType type, int blocks, std::int64_t rows,
                     std::span<const std::int64_t> slices, void* y, cudaStream_t stream);
/// Throws Error for more than Ops::kMostRuns runs.
void cuda_put_columns(std::span<const ColumnRun> runs, std::int64_t rows, float* y, std::int64_t ld,
                      cudaStream_t stream);

}  // namespace zi
