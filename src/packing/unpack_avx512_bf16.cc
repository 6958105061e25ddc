#if defined(__x86_64__)
#include "packing/unpack_avx512_bf16.h"

#include "packing/unpack_pieces.h"

namespace zi {

void unpack_int8_avx512_bf16(const PackedRow& row, const PackedPart& part, std::uint16_t* out,
                             std::int64_t stride) {
  UnpackPieces<Int8Avx512Bf16>::run(Int8Avx512Bf16(), row, part, out, stride);
}

}  // namespace zi
#endif
