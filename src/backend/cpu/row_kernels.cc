#include "backend/cpu/row_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cpu/simd.h"

namespace zi::row {
namespace {

using simd::kLanes;

/// 0.5 x (1 + tanh(u)) = x / (1 + e^-2u), which keeps its relative precision where the tanh nears
/// -1.
template <typename Vector>
ZI_INLINE void gelu_tanh(Vector& y, const Vector& x) {
  const Vector minus_2u = x * -1.5957691216057308f * (1.0f + 0.044715f * x * x);
  Vector e;
  simd::exp(e, minus_2u);
  y = x / (1.0f + e);
}

template <typename Vector>
ZI_INLINE void apply(Activation activation, Vector& y, const Vector& x) {
  switch (activation) {
    case Activation::kGeluTanh:
      gelu_tanh(y, x);
      break;
    case Activation::kGelu:
      for (int piece = 0; piece < y.kPieces; ++piece) {
        for (std::size_t i = 0; i < sizeof y.piece[piece] / sizeof(float); ++i) {
          const float v = x.piece[piece][i];
          y.piece[piece][i] = 0.5f * v * (1.0f + std::erf(v * 0.70710678118654752f));
        }
      }
      break;
    case Activation::kRelu: {
      Vector zero;
      simd::fill(zero, 0);
      y = simd::less(x, 0, zero, x);  // not x > 0: NaN stays NaN
      break;
    }
    case Activation::kSilu: {
      Vector e;
      simd::exp(e, 0.0f - x);
      y = x / (1.0f + e);
      break;
    }
  }
}

/// The last, partial vector of a row: zeros after its end.
template <typename Vector>
ZI_INLINE void load_part(Vector& v, const float* p, std::int64_t count) {
  if (count == kLanes) {
    simd::load(v, p);
    return;
  }
  float part[kLanes] = {};
  __builtin_memcpy(part, p, static_cast<std::size_t>(count) * sizeof(float));
  simd::load(v, part);
}

template <typename Vector>
ZI_INLINE void store_part(const Vector& v, float* p, std::int64_t count) {
  if (count == kLanes) {
    simd::store(v, p);
    return;
  }
  float part[kLanes];
  simd::store(v, part);
  __builtin_memcpy(p, part, static_cast<std::size_t>(count) * sizeof(float));
}

template <typename Vector>
ZI_INLINE void normalize_with(const float* x, const Norm& norm, std::int64_t cols, float* y) {
  const std::int64_t whole = cols / kLanes * kLanes;
  Vector v;
  float mean = 0;
  if (norm.centred) {
    Vector sums;
    simd::fill(sums, 0);
    for (std::int64_t i = 0; i < whole; i += kLanes) {
      simd::load(v, x + i);
      sums += v;
    }
    load_part(v, x + whole, cols - whole);
    sums += v;
    mean = simd::sum(sums) / static_cast<float>(cols);
  }

  Vector squares;
  simd::fill(squares, 0);
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    simd::load(v, x + i);
    v -= mean;
    squares += v * v;
  }
  float variance = simd::sum(squares);
  for (std::int64_t i = whole; i < cols; ++i) variance += (x[i] - mean) * (x[i] - mean);
  const float scale = 1.0f / std::sqrt(variance / static_cast<float>(cols) + norm.epsilon);

  const float* const gamma = norm.gamma;
  const float* const beta = norm.beta;
  if (beta != nullptr) {
    for (std::int64_t i = 0; i < cols; ++i) y[i] = (x[i] - mean) * scale * gamma[i] + beta[i];
  } else {
    for (std::int64_t i = 0; i < cols; ++i) y[i] = (x[i] - mean) * scale * gamma[i];
  }
}

template <typename Vector>
ZI_INLINE void activate_with(const float* x, const Activate& activate, std::int64_t cols,
                             float* y) {
  const float* const up = activate.up < 0 ? nullptr : x + activate.up;
  for (std::int64_t i = 0; i < cols; i += kLanes) {
    const std::int64_t count = cols - i < kLanes ? cols - i : kLanes;
    Vector v;
    Vector b;
    load_part(v, x + i, count);
    if (activate.bias != nullptr) {
      load_part(b, activate.bias + i, count);
      v += b;
    }
    apply(activate.activation, v, v);
    if (up != nullptr) {
      Vector u;
      load_part(u, up + i, count);
      if (activate.up_bias != nullptr) {
        load_part(b, activate.up_bias + i, count);
        u += b;
      }
      v *= u;
    }
    store_part(v, y + i, count);
  }
}

}  // namespace

ZI_SIMD_FUNCTION(normalize, (const float* x, const Norm& norm, std::int64_t cols, float* y),
                 (x, norm, cols, y))
ZI_SIMD_FUNCTION(activate, (const float* x, const Activate& activate, std::int64_t cols, float* y),
                 (x, activate, cols, y))

ZI_SIMD_CLONES void bias_residual(const float* x, const float* bias, std::int64_t cols,
                                  float* residual) {
  if (bias != nullptr) {
    for (std::int64_t i = 0; i < cols; ++i) residual[i] += x[i] + bias[i];
  } else {
    for (std::int64_t i = 0; i < cols; ++i) residual[i] += x[i];
  }
}

ZI_SIMD_CLONES void add(const float* x, const float* bias, std::int64_t cols, float* y) {
  if (bias != nullptr) {
    for (std::int64_t i = 0; i < cols; ++i) y[i] = x[i] + bias[i];
  } else {
    for (std::int64_t i = 0; i < cols; ++i) y[i] = x[i];
  }
}

void rotate(float* x, const float* rotations, std::int64_t pairs) {
  for (std::int64_t i = 0; i < pairs; ++i) {
    const float cosine = rotations[2 * i];
    const float sine = rotations[2 * i + 1];
    const float first = x[i];
    const float second = x[i + pairs];
    x[i] = first * cosine - second * sine;
    x[i + pairs] = second * cosine + first * sine;
  }
}

}  // namespace zi::row
