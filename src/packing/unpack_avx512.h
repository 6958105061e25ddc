#pragma once

#include <immintrin.h>

#include "packing/unpack_simd.h"

/// For files that are compiled for AVX-512.
namespace zi {
namespace {

/// A block of int4: the pairs of columns that stand half a word apart come to the two halves of a
/// lane; each half then names one of the 32 values that two scales can make.
struct Int4Avx512 {
  static constexpr std::int64_t kCodeBytes = 16;
  static constexpr std::int64_t kScales = 2;
  const Int4Values& values = int4_values();
  __m512i word_of_pair = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  __m512i shift = _mm512_set_epi32(12, 8, 4, 0, 12, 8, 4, 0, 12, 8, 4, 0, 12, 8, 4, 0);
  __m512i code = _mm512_set1_epi32(0x000f000f);
  __m512i second = _mm512_set_epi64(0x0010001000100010, 0x0010001000100010, 0x0010001000100010,
                                    0x0010001000100010, 0, 0, 0, 0);

  void write(const std::byte* block, const std::byte* scales, std::uint16_t* out) const {
    const __m512i words =
        _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block)));
    const __m512i pairs = _mm512_srlv_epi32(_mm512_permutexvar_epi32(word_of_pair, words), shift);
    const __m512i index = _mm512_ternarylogic_epi32(pairs, code, second, 0xea);  // and, or
    const auto* first = reinterpret_cast<const __m256i*>(values.of[static_cast<int>(scales[0])]);
    const auto* other = reinterpret_cast<const __m256i*>(values.of[static_cast<int>(scales[1])]);
    const __m512i table = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_load_si256(first)),
                                             _mm256_load_si256(other), 1);
    _mm512_storeu_si512(out, _mm512_permutexvar_epi16(index, table));
  }
};

/// Two blocks of int8 and their scale; `Rounding` makes bfloat16s of two times sixteen floats.
template <typename Rounding>
struct Int8Avx512 {
  static constexpr std::int64_t kCodeBytes = 32;
  static constexpr std::int64_t kScales = 1;
  const Int8Scales& scales = int8_scales();

  static __m512 half(const std::byte* block, __m512 scale) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)), scale);
  }
  void write(const std::byte* blocks, const std::byte* scale, std::uint16_t* out) const {
    const __m512 by = _mm512_set1_ps(scales.of[static_cast<int>(*scale)]);
    _mm512_storeu_si512(out, Rounding::join(half(blocks, by), half(blocks + 16, by)));
  }
};

}  // namespace
}  // namespace zi
