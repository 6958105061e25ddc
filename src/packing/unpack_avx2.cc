#if defined(__x86_64__)
#include "packing/unpack_avx2.h"

#include "packing/unpack_pieces.h"

namespace zi {
namespace {

template <typename Codes>
inline constexpr UnpackPart kUnpackBytesAvx2 =
    UnpackGroups<ByteGroupAvx2<Codes, true>, ByteGroupAvx2<Codes, false>>::run;

}  // namespace

void unpack_int4_avx2(const PackedRow& row, const PackedPart& part, std::uint16_t* out,
                      std::int64_t stride) {
  UnpackPieces<Int4Avx2>::run(Int4Avx2(), row, part, out, stride);
}

void unpack_int8_avx2(const PackedRow& row, const PackedPart& part, std::uint16_t* out,
                      std::int64_t stride) {
  UnpackPieces<Int8Avx2>::run(Int8Avx2(), row, part, out, stride);
}

const GroupUnpacks kAvx2Groups = {
    kUnpackBytesAvx2<Int8CodesAvx2<false>>, kUnpackBytesAvx2<Int8CodesAvx2<true>>,
    UnpackGroups<Int4GroupAvx2>::run, kUnpackBytesAvx2<Float8CodesAvx2>};

}  // namespace zi
#endif
