#if defined(__x86_64__)
#include "packing/unpack_avx512.h"

#include "packing/unpack_pieces.h"

namespace zi {
namespace {

struct RoundedBits {
  /// Rounded to nearest even.
  static __m256i narrow(__m512 v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
  }
  static __m512i join(__m512 low, __m512 high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(narrow(low)), narrow(high), 1);
  }
};

}  // namespace

void unpack_int4_avx512(const PackedRow& row, const PackedPart& part, std::uint16_t* out,
                        std::int64_t stride) {
  UnpackPieces<Int4Avx512>::run(Int4Avx512(), row, part, out, stride);
}

void unpack_int8_avx512(const PackedRow& row, const PackedPart& part, std::uint16_t* out,
                        std::int64_t stride) {
  UnpackPieces<Int8Avx512<RoundedBits>>::run(Int8Avx512<RoundedBits>(), row, part, out, stride);
}

}  // namespace zi
#endif
