#if defined(__x86_64__)
#include "packing/unpack_avx512.h"
#include "packing/unpack_avx512_pairs.h"
#include "packing/unpack_pieces.h"

namespace zi {
const GroupUnpacks kAvx512Bf16Groups = {kUnpackBytesAvx512<Int8CodesAvx512<false>, RoundedPairs>,
                                        kUnpackBytesAvx512<Int8CodesAvx512<true>, RoundedPairs>,
                                        UnpackGroups<Int4GroupAvx512>::run,
                                        kUnpackBytesAvx512<Float8CodesAvx512, RoundedPairs>};

void unpack_int8_avx512_bf16(const PackedRow& row, const PackedPart& part, std::uint16_t* out,
                             std::int64_t stride) {
  UnpackPieces<Int8Avx512<RoundedPairs>>::run(Int8Avx512<RoundedPairs>(), row, part, out, stride);
}

}  // namespace zi
#endif
