#pragma once

#include <cstdint>

#include "zero_infer/ops.h"

namespace zi::row {

/// The arithmetic of one row of the small ops; `cols` of any size. The bits depend on the row
/// alone.

/// See zi::Norm; y may be x.
void normalize(const float* x, const Norm& norm, std::int64_t cols, float* y);

/// See zi::Activate; x is the row of the product, from its first column on.
void activate(const float* x, const Activate& activate, std::int64_t cols, float* y);

/// residual += x + bias; bias may be null.
void bias_residual(const float* x, const float* bias, std::int64_t cols, float* residual);

/// y = x + bias; bias may be null.
void add(const float* x, const float* bias, std::int64_t cols, float* y);

/// Rotates each of `pairs` elements of x with the one `pairs` after it by (cos, sin) of its own.
void rotate(float* x, const float* rotations, std::int64_t pairs);

}  // namespace zi::row
