#if defined(__x86_64__)
#include "packing/unpack_avx512_pairs.h"

namespace zi {
const SimdUnpacks kAvx512Bf16ToBFloat16 = kUnpacksAvx512<RoundedPairs>;
}  // namespace zi
#endif
