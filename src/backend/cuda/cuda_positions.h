#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "zero_infer/ops.h"

namespace zi {

/// Ops::add_positions and Ops::rotations on a CUDA stream.
void cuda_add_positions(const float* table, std::int64_t first, const RaggedBatch& batch,
                        std::int64_t cols, float* x, cudaStream_t stream);
void cuda_rotations(const float* frequencies, int pairs, float scale, const RaggedBatch& batch,
                    float* out, cudaStream_t stream);

}  // namespace zi
