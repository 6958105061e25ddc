#pragma once

#include <immintrin.h>

/// For files that are compiled for AVX-512.
namespace zi {
namespace {

/// The sums of the lanes of four registers, in the tree of simd::sum.
inline void avx512_sums(const __m512 (&sums)[4], float (&out)[4]) {
  __m128 quarters[4];
  for (int i = 0; i < 4; ++i) {
    const __m256 half =
        _mm256_add_ps(_mm512_castps512_ps256(sums[i]), _mm512_extractf32x8_ps(sums[i], 1));
    quarters[i] = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  }
  _MM_TRANSPOSE4_PS(quarters[0], quarters[1], quarters[2], quarters[3]);
  _mm_storeu_ps(
      out, _mm_add_ps(_mm_add_ps(quarters[0], quarters[2]), _mm_add_ps(quarters[1], quarters[3])));
}

}  // namespace
}  // namespace zi
