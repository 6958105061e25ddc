#if defined(__x86_64__)
#include "packing/unpack_avx512.h"
#include "packing/unpack_pieces.h"

namespace zi {
namespace {

/// The instruction's rounding is the same: no value here is so small that it takes it for zero.
struct RoundedPairs {
  static __m512i join(__m512 low, __m512 high) {
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
  }
};

}  // namespace

void unpack_int8_avx512_bf16(const PackedRow& row, const PackedPart& part, std::uint16_t* out,
                             std::int64_t stride) {
  UnpackPieces<Int8Avx512<RoundedPairs>>::run(Int8Avx512<RoundedPairs>(), row, part, out, stride);
}

}  // namespace zi
#endif
