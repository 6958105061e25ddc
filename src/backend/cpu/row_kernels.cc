#include "backend/cpu/row_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cpu/simd.h"

namespace zi::row {
namespace {

using simd::kLanes;
using simd::Vector;

/// 0.5 x (1 + tanh(u)) = x / (1 + e^-2u), which keeps its relative precision where the tanh nears
/// -1.
ZI_INLINE void gelu(Vector& y, const Vector& x) {
  const Vector minus_2u = x * -1.5957691216057308f * (1.0f + 0.044715f * x * x);
  Vector e;
  simd::exp(e, minus_2u);
  y = x / (1.0f + e);
}

/// The last, partial vector of a row: zeros after its end.
ZI_INLINE void load_part(Vector& v, const float* p, std::int64_t count) {
  v = Vector{};
  __builtin_memcpy(&v, p, static_cast<std::size_t>(count) * sizeof(float));
}

ZI_INLINE void store_part(const Vector& v, float* p, std::int64_t count) {
  __builtin_memcpy(p, &v, static_cast<std::size_t>(count) * sizeof(float));
}

}  // namespace

ZI_SIMD_CLONES void layer_norm(const float* x, const float* gamma, const float* beta, float epsilon,
                               std::int64_t cols, float* y) {
  const std::int64_t whole = cols / kLanes * kLanes;
  Vector sums{};
  Vector v;
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    simd::load(v, x + i);
    sums += v;
  }
  load_part(v, x + whole, cols - whole);
  sums += v;
  const float mean = simd::sum(sums) / static_cast<float>(cols);

  Vector squares{};
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    simd::load(v, x + i);
    v -= mean;
    squares += v * v;
  }
  float variance = simd::sum(squares);
  for (std::int64_t i = whole; i < cols; ++i) variance += (x[i] - mean) * (x[i] - mean);
  const float scale = 1.0f / std::sqrt(variance / static_cast<float>(cols) + epsilon);

  for (std::int64_t i = 0; i < cols; ++i) y[i] = (x[i] - mean) * scale * gamma[i] + beta[i];
}

ZI_SIMD_CLONES void bias_gelu(const float* x, const float* bias, std::int64_t cols, float* y) {
  const std::int64_t whole = cols / kLanes * kLanes;
  Vector v;
  Vector b;
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    simd::load(v, x + i);
    simd::load(b, bias + i);
    gelu(v, v + b);
    simd::store(v, y + i);
  }
  if (whole == cols) return;
  load_part(v, x + whole, cols - whole);
  load_part(b, bias + whole, cols - whole);
  gelu(v, v + b);
  store_part(v, y + whole, cols - whole);
}

ZI_SIMD_CLONES void bias_residual(const float* x, const float* bias, std::int64_t cols,
                                  float* residual) {
  for (std::int64_t i = 0; i < cols; ++i) residual[i] += x[i] + bias[i];
}

ZI_SIMD_CLONES void add(const float* x, const float* bias, std::int64_t cols, float* y) {
  for (std::int64_t i = 0; i < cols; ++i) y[i] = x[i] + bias[i];
}

}  // namespace zi::row
