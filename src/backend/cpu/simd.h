#pragma once

#include <cstddef>
#include <cstdint>

#include "base/simd_clones.h"
#include "zero_infer/dtype.h"

namespace zi::simd {

/// Sixteen floats: the unit in which all sums of this backend are cut, so that a row's bits depend
/// neither on its address nor on how a compiler unrolls.
inline constexpr std::int64_t kLanes = 16;
typedef float Vector __attribute__((vector_size(64)));
typedef std::int32_t IntVector __attribute__((vector_size(64)));

// References, not values: vectors wider than the baseline have no stable calling convention.
ZI_INLINE void load(Vector& v, const float* p) { __builtin_memcpy(&v, p, sizeof v); }
ZI_INLINE void store(const Vector& v, float* p) { __builtin_memcpy(p, &v, sizeof v); }

/// The sum of the lanes, always in the same tree.
ZI_INLINE float sum(const Vector& v) {
  typedef float Half __attribute__((vector_size(32)));
  typedef float Quarter __attribute__((vector_size(16)));
  Half h[2];
  __builtin_memcpy(h, &v, sizeof v);
  h[0] += h[1];
  Quarter q[2];
  __builtin_memcpy(q, &h[0], sizeof h[0]);
  q[0] += q[1];
  return (q[0][0] + q[0][2]) + (q[0][1] + q[0][3]);
}

/// e^x to 2 units in the last place: x = n ln 2 + r, |r| <= ln 2 / 2, and the Taylor polynomial of
/// degree 7 in r. Below -87 the result is 0, above 88 it is e^88.
ZI_INLINE void exp(Vector& y, const Vector& x) {
  const Vector low = Vector{} - 87.0f;
  const Vector high = Vector{} + 88.0f;
  Vector c = x < low ? low : x;
  c = c > high ? high : c;
  // Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits.
  const Vector shifted = c * 1.44269504088896341f + 12582912.0f;
  const Vector n = shifted - 12582912.0f;
  Vector r = c - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vector p = Vector{} + 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const IntVector scale = (__builtin_convertvector(n, IntVector) + 127) << 23;
  Vector power;
  __builtin_memcpy(&power, &scale, sizeof power);
  const Vector result = p * power;
  y = x < low ? Vector{} : result;
  y = x > high ? Vector{} + __builtin_inff() : y;
}

/// Contiguous conversions, vectorised; bits as zi::convert.
void to_float(const void* src, DType from, float* dst, std::size_t count);
void from_float(const float* src, void* dst, DType to, std::size_t count);

}  // namespace zi::simd
