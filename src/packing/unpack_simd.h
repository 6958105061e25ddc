#pragma once

#include "packing/unpack_part.h"

namespace zi {

/// UnpackPart to one type with one instruction set. Each file of theirs is compiled for its
/// instructions: it calls no inline function of a header that others use, for of those the linker
/// keeps one copy.
struct SimdUnpacks {
  UnpackPart own_int8;  // kInt8Weights
  UnpackPart own_int4;  // kInt4Weights
  /// Every other format, by its kind of codes.
  UnpackPart int8;
  UnpackPart int8_with_zeros;
  UnpackPart int4;
  UnpackPart float8;
};
extern const SimdUnpacks kAvx2ToBFloat16;
extern const SimdUnpacks kAvx2ToFloat16;
extern const SimdUnpacks kAvx512ToBFloat16;
extern const SimdUnpacks kAvx512ToFloat16;
extern const SimdUnpacks kAvx512Bf16ToBFloat16;

/// Every value of an int4 weight: the bfloat16s or float16s of codes 0 to 15 under each byte of a
/// scale. Both are exact.
struct Int4Values {
  alignas(64) std::uint16_t of[256][16];
};
const Int4Values& int4_values(DType type);

/// The same values' bytes.
struct Int4Bytes {
  alignas(64) std::uint8_t lower[256][16];
  alignas(64) std::uint8_t upper[256][16];
};
const Int4Bytes& int4_bytes(DType type);

/// The scales of int8 weights.
struct Int8Scales {
  float of[256];
};
const Int8Scales& int8_scales();

/// A scale of int8 weights, and 2^16 + 1 times it, for codes in the uppermost byte of a 32-bit
/// word, which makes them 2^24 times as large, and for codes in the second byte, 2^8 times. Both
/// factors are exact, and so is scale * code: a product rounds to a bfloat16 in two more operations
/// (T. J. Dekker, A floating-point technique for extending the available precision, 1971):
///
///     above = (2^16 + 1) * scale * code,    value = above - (above - scale * code)
struct Int8Factors {
  float uppermost;
  float above_uppermost;
  float second;
  float above_second;
};
/// For each byte of a scale.
const Int8Factors* int8_factors();

}  // namespace zi
