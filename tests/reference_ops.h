#pragma once

#include <cstdint>
#include <vector>

#include "zero_infer/ops.h"

namespace zi::test {

/// Naive references in double precision, for every backend. Inputs are host memory; the names and
/// shapes are those of Ops.

/// Values of any element type as doubles.
std::vector<double> to_doubles(const void* data, DType dtype, std::int64_t count);

std::vector<double> layer_norm(const float* x, const float* gamma, const float* beta,
                               double epsilon, std::int64_t rows, std::int64_t cols);

/// The values of a row of weights: what weight_format.h says, column by column.
std::vector<double> row_values(const std::byte* row, const WeightFormat& format, std::int64_t cols);

/// Puts the lower bits of `code` where the code of a column stands in a packed row.
void set_code(std::byte* row, const WeightFormat& format, std::int64_t column, unsigned code);

/// (rows, w.padded_rows()); `magnitudes` receives the sums of |a w|, by which errors are judged.
/// Weights take part with their values, or with those rounded to `rounded`.
std::vector<double> matmul(const void* a, DType a_dtype, std::int64_t rows, const RowBlockMatrix& w,
                           std::vector<double>& magnitudes, DType rounded = DType::kFloat32);

std::vector<double> bias_gelu(const float* x, std::int64_t ld, const float* bias, std::int64_t rows,
                              std::int64_t cols);

/// (tokens, heads * head_dim), reading keys and values from the pages.
std::vector<double> attention(const float* q, int heads, const RaggedBatch& batch,
                              const KvLayer& kv, const float* slopes);

}  // namespace zi::test
