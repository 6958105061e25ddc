#if defined(__x86_64__)
#include "packing/unpack_avx2.h"

#include "packing/unpack_pieces.h"

namespace zi {
namespace {

template <typename Codes, typename To>
inline constexpr UnpackPart kUnpackBytesAvx2 =
    UnpackGroups<ByteGroupAvx2<Codes, To, true>, ByteGroupAvx2<Codes, To, false>>::run;

template <typename To>
inline constexpr SimdUnpacks kUnpacksAvx2 = {kUnpackPieces<Int8Avx2<To>>,
                                             kUnpackPieces<Int4Avx2<To>>,
                                             kUnpackBytesAvx2<Int8CodesAvx2<false>, To>,
                                             kUnpackBytesAvx2<Int8CodesAvx2<true>, To>,
                                             UnpackGroups<Int4GroupAvx2<To>>::run,
                                             kUnpackBytesAvx2<Float8CodesAvx2, To>};

}  // namespace

const SimdUnpacks kAvx2ToBFloat16 = kUnpacksAvx2<ToBFloat16Avx2>;
const SimdUnpacks kAvx2ToFloat16 = kUnpacksAvx2<ToFloat16Avx2>;

}  // namespace zi
#endif
