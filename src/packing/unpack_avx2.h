#pragma once

#include <immintrin.h>

#include "packing/unpack_groups.h"

/// Thirty-two columns of a packed row to 16 bits, in registers (`read`) or to memory (`write`),
/// for files that are compiled for AVX2.
namespace zi {
namespace {

/// A block of 16-bit values.
struct Pairs256 {
  __m256i half[2];

  void store(std::uint16_t* out) const {
    auto* const to = reinterpret_cast<__m256i*>(out);
    _mm256_storeu_si256(to, half[0]);
    _mm256_storeu_si256(to + 1, half[1]);
  }
};

/// What makes sixteen bfloat16s of floats, and what makes float16s: rounded to nearest even.
struct ToBFloat16Avx2 {
  static constexpr DType kType = DType::kBFloat16;
  /// In the lower half of each lane.
  static __m256i lower(__m256 v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff)));
    return _mm256_srli_epi32(sum, 16);
  }
  static __m256i join(__m256 low, __m256 high) {
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(lower(low), lower(high)), 0xd8);
  }
};
struct ToFloat16Avx2 {
  static constexpr DType kType = DType::kFloat16;
  static __m256i join(__m256 low, __m256 high) {
    return _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm256_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT)),
        _mm256_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT), 1);
  }
};

inline __m256 eight_of_int8(const std::byte* codes) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes))));
}

/// A block of int4 codes, by tables of the lower and the upper bytes of their values, sixteen for
/// each half of the block.
class Int4Block256 {
 public:
  Pairs256 read(const std::byte* block, __m256i lower, __m256i upper) const {
    const __m256i words =
        _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block)));
    const __m256i bytes =
        _mm256_shuffle_epi8(_mm256_permute4x64_epi64(words, 0x10), byte_of_column_);
    const __m256i halves = _mm256_blend_epi16(bytes, _mm256_srli_epi16(bytes, 4), 0xaa);
    const __m256i index = _mm256_and_si256(halves, code_);
    const __m256i low = _mm256_shuffle_epi8(lower, index);
    const __m256i high = _mm256_shuffle_epi8(upper, index);
    const __m256i left = _mm256_unpacklo_epi8(low, high);   // columns 0 to 7 and 16 to 23
    const __m256i right = _mm256_unpackhi_epi8(low, high);  // and the others
    return {{_mm256_permute2x128_si256(left, right, 0x20),
             _mm256_permute2x128_si256(left, right, 0x31)}};
  }

 private:
  // Columns 2 e and 2 e + 1 of a word are in its bytes e / 2 and e / 2 + 2, in the lower half for
  // even e.
  __m256i byte_of_column_ =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 0, 2, 1, 3, 1, 3, 4, 6, 4, 6, 5, 7, 5, 7));
  __m256i code_ = _mm256_set1_epi8(15);
};

/// A group of int4 in each half of a register.
template <typename To>
struct Int4Avx2 {
  static constexpr std::int64_t kCodeBytes = 16;
  static constexpr std::int64_t kScales = 2;
  const Int4Bytes& values = int4_bytes(To::kType);
  Int4Block256 block;

  __m256i tables(const std::uint8_t (*of)[16], const std::byte* scales) const {
    const auto* first = reinterpret_cast<const __m128i*>(of[static_cast<int>(scales[0])]);
    const auto* other = reinterpret_cast<const __m128i*>(of[static_cast<int>(scales[1])]);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_load_si128(first)),
                                   _mm_load_si128(other), 1);
  }
  Pairs256 read(const std::byte* codes, const std::byte* scales) const {
    return block.read(codes, tables(values.lower, scales), tables(values.upper, scales));
  }
  void write(const std::byte* codes, const std::byte* scales, std::uint16_t* out) const {
    read(codes, scales).store(out);
  }
};

template <typename To>
struct Int8Avx2 {
  static constexpr std::int64_t kCodeBytes = 32;
  static constexpr std::int64_t kScales = 1;
  const Int8Scales& scales = int8_scales();

  Pairs256 read(const std::byte* blocks, const std::byte* scale) const {
    const __m256 by = _mm256_set1_ps(scales.of[static_cast<int>(*scale)]);
    Pairs256 values;
    for (int half = 0; half < 2; ++half, blocks += 16) {
      values.half[half] = To::join(_mm256_mul_ps(eight_of_int8(blocks), by),
                                   _mm256_mul_ps(eight_of_int8(blocks + 8), by));
    }
    return values;
  }
  void write(const std::byte* blocks, const std::byte* scale, std::uint16_t* out) const {
    read(blocks, scale).store(out);
  }
};

template <typename To>
class Int4GroupAvx2 {
 public:
  static constexpr std::int64_t kCodeBytes = 16;

  Int4GroupAvx2() = default;
  Int4GroupAvx2(float group_scale, float group_zero) {
    const __m256 scale = _mm256_set1_ps(group_scale), zero = _mm256_set1_ps(group_zero);
    const __m256 low = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256 high = _mm256_setr_ps(8, 9, 10, 11, 12, 13, 14, 15);
    const __m256i values = To::join(_mm256_mul_ps(_mm256_sub_ps(low, zero), scale),
                                    _mm256_mul_ps(_mm256_sub_ps(high, zero), scale));
    lower_ = bytes(_mm256_and_si256(values, _mm256_set1_epi16(0xff)));
    upper_ = bytes(_mm256_srli_epi16(values, 8));
  }
  Pairs256 read(const std::byte* codes) const {
    const Int4Block256 block;  // constants, not a copy of them in each group
    return block.read(codes, lower_, upper_);
  }
  void write(const std::byte* codes, std::uint16_t* out) const { read(codes).store(out); }

 private:
  /// Sixteen words below 256 to bytes, in both halves.
  static __m256i bytes(__m256i words) {
    const __m256i packed = _mm256_packus_epi16(words, words);
    return _mm256_permute4x64_epi64(packed, 0x88);
  }
  __m256i lower_;
  __m256i upper_;
};

/// `Codes` makes floats of eight codes: their values, but for a factor, kFactor. An ordinary scale
/// takes the factor upon itself; one near float32's bounds could overflow, and the code takes it.
template <typename Codes, typename To, bool kOrdinary>
class ByteGroupAvx2 {
 public:
  static constexpr std::int64_t kCodeBytes = 32;

  ByteGroupAvx2() = default;
  ByteGroupAvx2(float group_scale, float group_zero)
      : scale_(_mm256_set1_ps(kOrdinary ? group_scale * Codes::kFactor : group_scale)),
        zero_(_mm256_set1_ps(group_zero)) {}
  Pairs256 read(const std::byte* codes) const {
    return {
        {To::join(eight(codes), eight(codes + 8)), To::join(eight(codes + 16), eight(codes + 24))}};
  }
  void write(const std::byte* codes, std::uint16_t* out) const { read(codes).store(out); }

 private:
  __m256 eight(const std::byte* codes) const {
    __m256 value = Codes::eight(codes);
    if constexpr (!kOrdinary) value = _mm256_mul_ps(value, _mm256_set1_ps(Codes::kFactor));
    if constexpr (Codes::kZeros) value = _mm256_sub_ps(value, zero_);
    return _mm256_mul_ps(value, scale_);
  }
  __m256 scale_;
  __m256 zero_;
};
template <bool kWithZeros>
struct Int8CodesAvx2 {
  static constexpr float kFactor = 1;
  static constexpr bool kZeros = kWithZeros;
  static __m256 eight(const std::byte* codes) { return eight_of_int8(codes); }
};
/// A code's bits, moved, are a float16: it has 4 bits of exponent as these have 5.
struct Float8CodesAvx2 {
  static constexpr float kFactor = 256;
  static constexpr bool kZeros = false;
  static __m256 eight(const std::byte* codes) {
    const __m128i wide =
        _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
    const __m128i sign = _mm_and_si128(_mm_slli_epi16(wide, 8), _mm_set1_epi16(-0x8000));
    const __m128i size = _mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16(0x3f80));
    return _mm256_cvtph_ps(_mm_or_si128(sign, size));
  }
};

}  // namespace
}  // namespace zi
