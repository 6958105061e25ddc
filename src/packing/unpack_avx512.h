#pragma once

#include <immintrin.h>

#include "packing/unpack_groups.h"
#include "packing/unpack_pieces.h"

/// Thirty-two columns of a packed row to 16 bits, in a register (`read`) or to memory (`write`),
/// for files that are compiled for AVX-512.
namespace zi {
namespace {

/// Which value each column of a block of int4 has: the pairs of columns that stand half a word
/// apart come to the two halves of a lane.
class Int4Block512 {
 public:
  __m512i pairs(const std::byte* block) const {
    const __m512i words =
        _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block)));
    return _mm512_srlv_epi32(_mm512_permutexvar_epi32(word_of_pair_, words), shift_);
  }
  /// The codes of pairs, in all bits; and with those of `others` set.
  __m512i codes(__m512i pairs) const { return _mm512_and_si512(pairs, code_); }
  __m512i codes(__m512i pairs, __m512i others) const {
    return _mm512_ternarylogic_epi32(pairs, code_, others, 0xea);  // and, or
  }

 private:
  __m512i word_of_pair_ = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  __m512i shift_ = _mm512_set_epi32(12, 8, 4, 0, 12, 8, 4, 0, 12, 8, 4, 0, 12, 8, 4, 0);
  __m512i code_ = _mm512_set1_epi32(0x000f000f);
};

inline __m512 sixteen_of_int8(const std::byte* codes) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes))));
}

/// Two blocks of int8 and their scale; `Rounding` makes 16 bits of two times sixteen floats.
template <typename Rounding>
struct Int8Avx512 {
  static constexpr std::int64_t kCodeBytes = 32;
  static constexpr std::int64_t kScales = 1;
  const Int8Scales& scales = int8_scales();

  __m512i read(const std::byte* blocks, const std::byte* scale) const {
    const __m512 by = _mm512_set1_ps(scales.of[static_cast<int>(*scale)]);
    return Rounding::join(_mm512_mul_ps(sixteen_of_int8(blocks), by),
                          _mm512_mul_ps(sixteen_of_int8(blocks + 16), by));
  }
  void write(const std::byte* blocks, const std::byte* scale, std::uint16_t* out) const {
    _mm512_storeu_si512(out, read(blocks, scale));
  }
};

/// ToBFloat16 of unpack_rows, for any float: rounded to nearest even.
struct RoundedBits {
  using Any = RoundedBits;  // the same bits, whatever the float
  static constexpr DType kType = DType::kBFloat16;
  /// In the upper half of each lane.
  static __m512i upper(__m512 v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
  }
  static __m256i narrow(__m512 v) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(upper(v), 16)); }
  static __m512i join(__m512 low, __m512 high) {
    const __m512i even_then_odd =
        _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 30, 28, 26, 24,
                         22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i pairs =
        _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(upper(low), 16), upper(high));
    return _mm512_permutexvar_epi16(even_then_odd, pairs);
  }
};

/// The same of float16s.
struct RoundedHalves {
  using Any = RoundedHalves;
  static constexpr DType kType = DType::kFloat16;
  static __m256i narrow(__m512 v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
  static __m512i join(__m512 low, __m512 high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(narrow(low)), narrow(high), 1);
  }
};

/// Each half of a block takes one of the 32 values that two scales can make.
template <typename Rounding>
struct Int4Avx512 {
  static constexpr std::int64_t kCodeBytes = 16;
  static constexpr std::int64_t kScales = 2;
  const Int4Values& values = int4_values(Rounding::kType);
  Int4Block512 block;
  __m512i second = _mm512_set_epi64(0x0010001000100010, 0x0010001000100010, 0x0010001000100010,
                                    0x0010001000100010, 0, 0, 0, 0);

  __m512i read(const std::byte* codes, const std::byte* scales) const {
    const __m512i index = block.codes(block.pairs(codes), second);
    const auto* first = reinterpret_cast<const __m256i*>(values.of[static_cast<int>(scales[0])]);
    const auto* other = reinterpret_cast<const __m256i*>(values.of[static_cast<int>(scales[1])]);
    const __m512i table = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_load_si256(first)),
                                             _mm256_load_si256(other), 1);
    return _mm512_permutexvar_epi16(index, table);
  }
  void write(const std::byte* codes, const std::byte* scales, std::uint16_t* out) const {
    _mm512_storeu_si512(out, read(codes, scales));
  }
};

/// The values of codes 0 to 15.
template <typename Rounding>
__m256i int4_values_of(float scale, float zero) {
  const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512 less = _mm512_sub_ps(codes, _mm512_set1_ps(zero));
  return Rounding::narrow(_mm512_mul_ps(less, _mm512_set1_ps(scale)));
}

template <typename Rounding>
class Int4GroupAvx512 {
 public:
  static constexpr std::int64_t kCodeBytes = 16;

  Int4GroupAvx512() = default;
  Int4GroupAvx512(float group_scale, float group_zero)
      : values_(_mm512_castsi256_si512(int4_values_of<Rounding>(group_scale, group_zero))) {}
  __m512i read(const std::byte* codes) const {
    const Int4Block512 block;  // constants, not a copy of them in each group
    return _mm512_permutexvar_epi16(block.codes(block.pairs(codes)), values_);
  }
  void write(const std::byte* codes, std::uint16_t* out) const {
    _mm512_storeu_si512(out, read(codes));
  }

 private:
  __m512i values_;  // in the lower half
};

/// `Codes` makes floats of thirty-two codes: their values, but for a factor, kFactor. An ordinary
/// scale takes the factor upon itself; one near float32's bounds could overflow, and the code takes
/// it.
template <typename Codes, typename Rounding, bool kOrdinary>
class ByteGroupAvx512 {
 public:
  static constexpr std::int64_t kCodeBytes = 32;

  ByteGroupAvx512() = default;
  ByteGroupAvx512(float group_scale, float group_zero)
      : scale_(_mm512_set1_ps(kOrdinary ? group_scale * Codes::kFactor : group_scale)),
        zero_(_mm512_set1_ps(group_zero)) {}
  __m512i read(const std::byte* codes) const {
    __m512 low, high;
    Codes::read(codes, low, high);
    return Rounding::join(value(low), value(high));
  }
  void write(const std::byte* codes, std::uint16_t* out) const {
    _mm512_storeu_si512(out, read(codes));
  }

 private:
  __m512 value(__m512 code) const {
    if constexpr (!kOrdinary) code = _mm512_mul_ps(code, _mm512_set1_ps(Codes::kFactor));
    if constexpr (Codes::kZeros) code = _mm512_sub_ps(code, zero_);
    return _mm512_mul_ps(code, scale_);
  }
  __m512 scale_;
  __m512 zero_;
};
template <bool kWithZeros>
struct Int8CodesAvx512 {
  static constexpr float kFactor = 1;
  static constexpr bool kZeros = kWithZeros;
  static void read(const std::byte* codes, __m512& low, __m512& high) {
    low = sixteen_of_int8(codes);
    high = sixteen_of_int8(codes + 16);
  }
};
/// A code's bits, moved, are a float16: it has 4 bits of exponent as these have 5.
struct Float8CodesAvx512 {
  static constexpr float kFactor = 256;
  static constexpr bool kZeros = false;
  static void read(const std::byte* codes, __m512& low, __m512& high) {
    const __m512i wide =
        _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
    const __m512i size = _mm512_and_si512(_mm512_slli_epi16(wide, 7), _mm512_set1_epi16(0x3f80));
    const __m512i bits = _mm512_ternarylogic_epi32(_mm512_slli_epi16(wide, 8),
                                                   _mm512_set1_epi16(-0x8000), size, 0xea);
    low = _mm512_cvtph_ps(_mm512_castsi512_si256(bits));
    high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(bits, 1));
  }
};

template <typename Codes, typename Rounding>
inline constexpr UnpackPart kUnpackBytesAvx512 =
    UnpackGroups<ByteGroupAvx512<Codes, Rounding, true>,
                 ByteGroupAvx512<Codes, typename Rounding::Any, false>>::run;

template <typename Rounding>
inline constexpr SimdUnpacks kUnpacksAvx512 = {
    kUnpackPieces<Int8Avx512<Rounding>>,
    kUnpackPieces<Int4Avx512<typename Rounding::Any>>,
    kUnpackBytesAvx512<Int8CodesAvx512<false>, Rounding>,
    kUnpackBytesAvx512<Int8CodesAvx512<true>, Rounding>,
    UnpackGroups<Int4GroupAvx512<typename Rounding::Any>>::run,
    kUnpackBytesAvx512<Float8CodesAvx512, Rounding>};

}  // namespace
}  // namespace zi
