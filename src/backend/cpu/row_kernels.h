#pragma once

#include <cstdint>

namespace zi::row {

/// The arithmetic of one row of the small ops; `cols` of any size. The bits depend on the row
/// alone.

/// y = (x - mean) / sqrt(variance + epsilon) * gamma + beta; y may be x.
void layer_norm(const float* x, const float* gamma, const float* beta, float epsilon,
                std::int64_t cols, float* y);

/// y = gelu(x + bias), the tanh form.
void bias_gelu(const float* x, const float* bias, std::int64_t cols, float* y);

/// residual += x + bias.
void bias_residual(const float* x, const float* bias, std::int64_t cols, float* residual);

/// y = x + bias.
void add(const float* x, const float* bias, std::int64_t cols, float* y);

}  // namespace zi::row
