#pragma once

#include "packing/unpack_avx512.h"

/// For files that are compiled for AVX512-BF16.
namespace zi {
namespace {

/// The instruction's rounding is the same: no value here is so small that it takes it for zero.
struct RoundedPairs {
  static __m512i join(__m512 low, __m512 high) {
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
  }
};

using Int8Avx512Bf16 = Int8Avx512<RoundedPairs>;

}  // namespace
}  // namespace zi
