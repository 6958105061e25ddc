#pragma once

#include <immintrin.h>

#include "packing/unpack_simd.h"

/// Sixty-four columns of a packed row to bfloat16, for files that are compiled for AVX512-VBMI and
/// AVX512-BF16: the bits of unpack_rows, but for the sign of a zero. Objects are meant for a loop's
/// registers; a compiler that knew the constants would fetch them from memory again for each row.
namespace zi {
namespace {

template <typename Vector>
inline void keep_in_register(Vector& constant) {
  asm("" : "+v"(constant));
}

/// A line of int8 codes. A code with its sign bit turned is code + 128, and as the lowest byte of
/// the float 2^23 makes it 2^23 + 128 + code; a fused multiply-add, exact here, makes scale * code
/// of it.
struct Int8Columns64 {
  static constexpr std::int64_t kCodeBytes = 64;
  static constexpr std::int64_t kScales = 2;

  Int8Columns64() {
    const __m512i first = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int i = 0; i < 4; ++i) {
      codes_[i] = _mm512_add_epi32(first, _mm512_set1_epi32(16 * i));
      keep_in_register(codes_[i]);
    }
    keep_in_register(sign_);
    keep_in_register(bias_);
    keep_in_register(less_);
  }

  void write(const std::byte* codes, const std::byte* scales, std::uint16_t* out) const {
    const __m512i line = _mm512_xor_si512(_mm512_loadu_si512(codes), sign_);
    for (int half = 0; half < 2; ++half) {
      const __m512 scale = _mm512_set1_ps(scales_.of[static_cast<int>(scales[half])]);
      const __m512 offset = _mm512_mul_ps(scale, less_);
      const __m512 low = scaled(line, codes_[2 * half], scale, offset);
      const __m512 high = scaled(line, codes_[2 * half + 1], scale, offset);
      _mm512_storeu_si512(out + 32 * half,
                          reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
    }
  }

 private:
  __m512 scaled(__m512i line, __m512i codes, __m512 scale, __m512 offset) const {
    constexpr __mmask64 kLowest = 0x1111111111111111;
    const __m512i biased = _mm512_mask_permutexvar_epi8(bias_, kLowest, codes, line);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(biased), scale, offset);
  }

  const Int8Scales& scales_ = int8_scales();
  __m512i codes_[4];  // where sixteen of the line come from
  __m512i sign_ = _mm512_set1_epi8(-128);
  __m512i bias_ = _mm512_set1_epi32(0x4b000000);  // 2^23
  __m512 less_ = _mm512_set1_ps(-0x1.0001p23f);   // -(2^23 + 128)
};

/// For each byte of a block of int4 that is written.
struct Int4Places {
  alignas(64) std::uint8_t shift[64] = {};  // where its index begins in eight bytes of codes
  alignas(64) std::uint8_t place[64] = {};  // bits 5 and 0 of the index
  constexpr Int4Places() {
    for (int byte = 0; byte < 64; ++byte) {
      const int column = byte / 2 % 16;
      const int code = column / 8 * 32 + column % 8 / 2 * 4 + column % 2 * 16;
      shift[byte] = static_cast<std::uint8_t>((code + 63) % 64);
      place[byte] = static_cast<std::uint8_t>(byte / 32 * 32 + byte % 2);
    }
  }
};
inline constexpr Int4Places kInt4Places{};

/// Two blocks of int4. Each byte of a column's value is one of 64 that two scales can make: bits 1
/// to 4 of its index are the code, bit 5 the scale, bit 0 says which of the two bytes.
struct Int4Columns64 {
  static constexpr std::int64_t kCodeBytes = 32;
  static constexpr std::int64_t kScales = 4;

  Int4Columns64() {
    keep_in_register(first_);
    keep_in_register(second_);
    keep_in_register(shift_);
    keep_in_register(code_);
    keep_in_register(place_);
  }

  /// Of kInt4Weights.
  void write(const std::byte* codes, const std::byte* scales, std::uint16_t* out) const {
    const __m512i blocks = read(codes);
    write_block(
        _mm512_permutexvar_epi64(first_, blocks),
        tables(values_.of[static_cast<int>(scales[0])], values_.of[static_cast<int>(scales[1])]),
        out);
    write_block(
        _mm512_permutexvar_epi64(second_, blocks),
        tables(values_.of[static_cast<int>(scales[2])], values_.of[static_cast<int>(scales[3])]),
        out + 32);
  }
  /// Of the sixteen values of each block.
  void write(const std::byte* codes, const std::uint16_t* values, const std::uint16_t* others,
             std::uint16_t* out) const {
    const __m512i blocks = read(codes);
    write_block(_mm512_permutexvar_epi64(first_, blocks), tables(values, values), out);
    write_block(_mm512_permutexvar_epi64(second_, blocks), tables(others, others), out + 32);
  }

 private:
  static __m512i read(const std::byte* codes) {
    return _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
  }
  static __m512i tables(const std::uint16_t* first, const std::uint16_t* other) {
    return _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm256_load_si256(reinterpret_cast<const __m256i*>(first))),
        _mm256_load_si256(reinterpret_cast<const __m256i*>(other)), 1);
  }
  /// `words`: the block's first half for four lanes of eight bytes, its second half for four.
  void write_block(__m512i words, __m512i values, std::uint16_t* out) const {
    const __m512i shifted = _mm512_multishift_epi64_epi8(shift_, words);
    const __m512i index = _mm512_ternarylogic_epi32(shifted, code_, place_, 0xea);  // and, or
    _mm512_storeu_si512(out, _mm512_permutexvar_epi8(index, values));
  }

  const Int4Values& values_ = int4_values(DType::kBFloat16);
  __m512i first_ = _mm512_set_epi64(1, 1, 1, 1, 0, 0, 0, 0);  // of the halves of two blocks
  __m512i second_ = _mm512_set_epi64(3, 3, 3, 3, 2, 2, 2, 2);
  __m512i shift_ = _mm512_load_si512(kInt4Places.shift);
  __m512i code_ = _mm512_set1_epi8(0x1e);
  __m512i place_ = _mm512_load_si512(kInt4Places.place);
};

}  // namespace
}  // namespace zi
