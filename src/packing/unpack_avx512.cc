#if defined(__x86_64__)
#include "packing/unpack_avx512.h"

namespace zi {
const SimdUnpacks kAvx512ToBFloat16 = kUnpacksAvx512<RoundedBits>;
const SimdUnpacks kAvx512ToFloat16 = kUnpacksAvx512<RoundedHalves>;
}  // namespace zi
#endif
