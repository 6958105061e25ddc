#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "zero_infer/uniform_values.h"
#include "zero_infer/weight_format.h"

namespace zi {

/// out (rows, cols) of type `to` = the values of packed rows, as unpack_rows (src/packing).
void cuda_unpack_rows(const std::byte* packed, std::int64_t rows, std::int64_t cols,
                      const WeightFormat& format, DType to, void* out, cudaStream_t stream);

/// As Ops::gather_rows, of packed rows.
void cuda_gather_packed_rows(const std::byte* packed, const WeightFormat& format,
                             const std::int32_t* rows, std::int64_t count, std::int64_t cols,
                             float* out, cudaStream_t stream);

/// As Ops::fill_uniform_rows, of kInt8Weights and kInt4Weights; throws Error for other packed
/// formats.
void cuda_fill_packed_rows(const UniformValues& values, std::int64_t first, std::int64_t rows,
                           std::int64_t cols, const WeightFormat& format, std::byte* out,
                           cudaStream_t stream);

}  // namespace zi
