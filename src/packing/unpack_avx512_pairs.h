#pragma once

#include "packing/unpack_avx512.h"

/// For files that are compiled for AVX512-BF16.
namespace zi {
namespace {

/// The instruction's rounding is RoundedBits' but for values so small that it takes them for zero:
/// neither kInt8Weights nor ordinary scales have such.
struct RoundedPairs {
  using Any = RoundedBits;
  static __m512i join(__m512 low, __m512 high) {
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
  }
};

}  // namespace
}  // namespace zi
