#include "packing/unpack_avx512.h"

#include <algorithm>

#if defined(__x86_64__)
#include <immintrin.h>

#define ZI_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))
#endif

namespace zi {

#if defined(__x86_64__)
namespace {

/// Columns that are unpacked at once: two groups of int4, one of int8.
constexpr std::int64_t kColumns = 32;

/// Sixteen scales at a time, as floats.
ZI_AVX512 void scales_to_float(const std::byte* bytes, std::int64_t count, WeightFormat::Kind kind,
                               float* out) {
  const __m512i bias = _mm512_set1_epi32((127 + float8_exponent(kind)) << 23);
  for (std::int64_t i = 0; i < count; i += 16) {
    const std::int64_t here = std::min<std::int64_t>(16, count - i);
    const auto mask = static_cast<__mmask16>((1u << here) - 1);
    const __m512i b = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, bytes + i));
    const __m512i sign = _mm512_slli_epi32(_mm512_and_si512(b, _mm512_set1_epi32(0x80)), 24);
    const __m512i rest = _mm512_slli_epi32(_mm512_and_si512(b, _mm512_set1_epi32(0x7f)), 20);
    const __m512i bits = _mm512_or_si512(sign, _mm512_add_epi32(rest, bias));
    _mm512_mask_storeu_ps(out + i, mask, _mm512_castsi512_ps(bits));
  }
}

/// The bits of floats, to be cut to bfloat16s: rounded to nearest even.
ZI_AVX512 inline __m512i rounded(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  return _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
}

/// The upper halves of even columns and of odd ones, side by side.
ZI_AVX512 inline __m512i pairs_of(__m512i even, __m512i odd) {
  return _mm512_or_si512(_mm512_srli_epi32(even, 16),
                         _mm512_and_si512(odd, _mm512_set1_epi32(-65536)));
}

/// A block of int4: pairs of columns. Values are bfloat16s exactly: nothing is rounded.
ZI_AVX512 inline __m512i unpack_int4(const std::byte* block, const float* scales) {
  const __m512i word_of_pair = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  const __m512i shift = _mm512_set_epi32(12, 8, 4, 0, 12, 8, 4, 0, 12, 8, 4, 0, 12, 8, 4, 0);
  const __m512i group = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m512i words =
      _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block)));
  const __m512i pairs = _mm512_srlv_epi32(_mm512_permutexvar_epi32(word_of_pair, words), shift);
  const __m512 scale = _mm512_permutexvar_ps(
      group, _mm512_castps128_ps512(
                 _mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales)))));
  const __m512 middle = _mm512_set1_ps(kInt4Middle);
  const __m512i code = _mm512_set1_epi32(15);
  const __m512 even = _mm512_cvtepi32_ps(_mm512_and_si512(pairs, code));
  const __m512 odd = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(pairs, 16), code));
  return pairs_of(_mm512_castps_si512(_mm512_mul_ps(_mm512_sub_ps(even, middle), scale)),
                  _mm512_castps_si512(_mm512_mul_ps(_mm512_sub_ps(odd, middle), scale)));
}

/// Two blocks of int8.
ZI_AVX512 inline __m512i unpack_int8(const std::byte* blocks, float scale) {
  const __m512i pairs =
      _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(blocks)));
  const __m512 by = _mm512_set1_ps(scale);
  const __m512 even = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(pairs, 24), 24));
  const __m512 odd = _mm512_cvtepi32_ps(_mm512_srai_epi32(pairs, 8));
  return pairs_of(rounded(_mm512_mul_ps(even, by)), rounded(_mm512_mul_ps(odd, by)));
}

template <WeightFormat::Kind kKind>
ZI_AVX512 void unpack(const std::byte* packed, std::int64_t rows, const PackedRow& row,
                      std::uint16_t* out) {
  constexpr bool kInt4 = kKind == WeightFormat::Kind::kInt4;
  constexpr std::int64_t kBytes = kInt4 ? 16 : 32;  // of codes
  constexpr std::int64_t kGroups = kInt4 ? 2 : 1;
  constexpr std::int64_t kScalesAtOnce = 64;
  alignas(64) float scales[kScalesAtOnce];
  for (std::int64_t r = 0; r < rows; ++r, packed += row.bytes, out += row.cols) {
    for (std::int64_t first = 0; first < row.cols; first += kColumns) {
      const std::int64_t group = first / kColumns * kGroups;
      if (group % kScalesAtOnce == 0) {
        scales_to_float(packed + row.scales_at + group, std::min(kScalesAtOnce, row.groups - group),
                        kKind, scales);
      }
      const std::byte* const codes = packed + first / kColumns * kBytes;
      const float* const scale = scales + group % kScalesAtOnce;
      const std::int64_t count = std::min(kColumns, row.cols - first);
      __m512i pairs;
      if constexpr (kInt4) {
        pairs = unpack_int4(codes, scale);
      } else if (count > 16) {
        pairs = unpack_int8(codes, *scale);
      } else {  // the row has one block more, and not two
        alignas(32) std::byte last[kBytes] = {};
        std::copy_n(codes, 16, last);
        pairs = unpack_int8(last, *scale);
      }
      const auto mask = static_cast<__mmask32>(count == kColumns ? ~0u : (1u << count) - 1);
      _mm512_mask_storeu_epi16(out + first, mask, pairs);
    }
  }
}

}  // namespace

bool unpack_with_avx512(const std::byte* packed, std::int64_t rows, const PackedRow& row,
                        std::uint16_t* out) {
  static const bool available = __builtin_cpu_supports("avx512f") != 0 &&
                                __builtin_cpu_supports("avx512bw") != 0 &&
                                __builtin_cpu_supports("avx512vl") != 0;
  if (!available) return false;
  if (row.format == kInt4Weights) {
    unpack<WeightFormat::Kind::kInt4>(packed, rows, row, out);
  } else if (row.format == kInt8Weights) {
    unpack<WeightFormat::Kind::kInt8>(packed, rows, row, out);
  } else {
    return false;
  }
  return true;
}
#else
bool unpack_with_avx512(const std::byte*, std::int64_t, const PackedRow&, std::uint16_t*) {
  return false;
}
#endif

}  // namespace zi
