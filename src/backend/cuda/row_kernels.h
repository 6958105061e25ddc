#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "zero_infer/ops.h"

namespace zi {

/// The ops of Ops that work row by row or element by element, as launches on a CUDA stream; the
/// arguments are those of Ops.
void cuda_normalize(const float* x, const Norm& norm, std::int64_t rows, std::int64_t cols, void* y,
                    DType y_dtype, cudaStream_t stream);
void cuda_bias_residual_norm(const float* x, std::int64_t ld, const float* bias, float* residual,
                             const Norm& norm, std::int64_t rows, std::int64_t cols, void* y,
                             DType y_dtype, cudaStream_t stream);
/// x is float32, or of y's type.
void cuda_activate(const void* x, DType x_dtype, std::int64_t ld, const Activate& activate,
                   std::int64_t rows, std::int64_t cols, void* y, DType y_dtype,
                   cudaStream_t stream);
void cuda_bias_residual(const float* x, std::int64_t ld, const float* bias, std::int64_t rows,
                        std::int64_t cols, float* residual, cudaStream_t stream);
void cuda_gather_rows(const void* x, DType dtype, const std::int32_t* rows, std::int64_t count,
                      std::int64_t cols, float* out, cudaStream_t stream);
void cuda_convert(const void* x, DType from, void* y, DType to, std::int64_t count,
                  cudaStream_t stream);
void cuda_fill_uniform(const UniformValues& values, std::int64_t first, std::int64_t count, void* y,
                       DType to, cudaStream_t stream);

}  // namespace zi
