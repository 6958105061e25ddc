#if defined(__x86_64__)
#include "packing/unpack_avx512.h"

#include "packing/unpack_pieces.h"

namespace zi {
void unpack_int4_avx512(const PackedRow& row, const PackedPart& part, std::uint16_t* out,
                        std::int64_t stride) {
  UnpackPieces<Int4Avx512>::run(Int4Avx512(), row, part, out, stride);
}

void unpack_int8_avx512(const PackedRow& row, const PackedPart& part, std::uint16_t* out,
                        std::int64_t stride) {
  UnpackPieces<Int8Avx512<RoundedBits>>::run(Int8Avx512<RoundedBits>(), row, part, out, stride);
}

const GroupUnpacks kAvx512Groups = {kUnpackBytesAvx512<Int8CodesAvx512<false>, RoundedBits>,
                                    kUnpackBytesAvx512<Int8CodesAvx512<true>, RoundedBits>,
                                    UnpackGroups<Int4GroupAvx512>::run,
                                    kUnpackBytesAvx512<Float8CodesAvx512, RoundedBits>};

}  // namespace zi
#endif
