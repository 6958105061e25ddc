#if defined(__x86_64__)
#include <immintrin.h>

#include "packing/unpack_pieces.h"

namespace zi {
namespace {

/// A group of int4 in each half of a register: one table for the lower bytes of its sixteen values,
/// one for the upper.
struct Int4Avx2 {
  static constexpr std::int64_t kCodeBytes = 16;
  static constexpr std::int64_t kScales = 2;
  const Int4Bytes& values = int4_bytes();
  // Columns 2 e and 2 e + 1 of a word are in its bytes e / 2 and e / 2 + 2, in the lower half for
  // even e.
  __m256i byte_of_column =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 0, 2, 1, 3, 1, 3, 4, 6, 4, 6, 5, 7, 5, 7));
  __m256i code = _mm256_set1_epi8(15);

  __m256i tables(const std::uint8_t (*of)[16], const std::byte* scales) const {
    const auto* first = reinterpret_cast<const __m128i*>(of[static_cast<int>(scales[0])]);
    const auto* other = reinterpret_cast<const __m128i*>(of[static_cast<int>(scales[1])]);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_load_si128(first)),
                                   _mm_load_si128(other), 1);
  }
  void write(const std::byte* block, const std::byte* scales, std::uint16_t* out) const {
    const __m256i words =
        _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block)));
    const __m256i bytes =
        _mm256_shuffle_epi8(_mm256_permute4x64_epi64(words, 0x10), byte_of_column);
    const __m256i halves = _mm256_blend_epi16(bytes, _mm256_srli_epi16(bytes, 4), 0xaa);
    const __m256i index = _mm256_and_si256(halves, code);
    const __m256i low = _mm256_shuffle_epi8(tables(values.lower, scales), index);
    const __m256i high = _mm256_shuffle_epi8(tables(values.upper, scales), index);
    const __m256i left = _mm256_unpacklo_epi8(low, high);   // columns 0 to 7 and 16 to 23
    const __m256i right = _mm256_unpackhi_epi8(low, high);  // and the others
    auto* to = reinterpret_cast<__m256i*>(out);
    _mm256_storeu_si256(to, _mm256_permute2x128_si256(left, right, 0x20));
    _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(left, right, 0x31));
  }
};

struct Int8Avx2 {
  static constexpr std::int64_t kCodeBytes = 32;
  static constexpr std::int64_t kScales = 1;
  const Int8Scales& scales = int8_scales();

  /// Eight columns' bfloat16s, rounded to nearest even, in the lower half of each lane.
  static __m256i eight(const std::byte* codes, __m256 scale) {
    const __m256i wide =
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
    const __m256i bits = _mm256_castps_si256(_mm256_mul_ps(_mm256_cvtepi32_ps(wide), scale));
    const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff)));
    return _mm256_srli_epi32(sum, 16);
  }
  void write(const std::byte* blocks, const std::byte* scale, std::uint16_t* out) const {
    const __m256 by = _mm256_set1_ps(scales.of[static_cast<int>(*scale)]);
    auto* to = reinterpret_cast<__m256i*>(out);
    for (int half = 0; half < 2; ++half, blocks += 16) {
      const __m256i both = _mm256_packus_epi32(eight(blocks, by), eight(blocks + 8, by));
      _mm256_storeu_si256(to + half, _mm256_permute4x64_epi64(both, 0xd8));
    }
  }
};

}  // namespace

void unpack_int4_avx2(const PackedRow& row, const PackedPart& part, std::uint16_t* out,
                      std::int64_t stride) {
  UnpackPieces<Int4Avx2>::run(Int4Avx2(), row, part, out, stride);
}

void unpack_int8_avx2(const PackedRow& row, const PackedPart& part, std::uint16_t* out,
                      std::int64_t stride) {
  UnpackPieces<Int8Avx2>::run(Int8Avx2(), row, part, out, stride);
}

}  // namespace zi
#endif
