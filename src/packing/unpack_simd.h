#pragma once

#include "packing/unpack_part.h"

namespace zi {

/// UnpackPart of kInt4Weights and kInt8Weights with the named instructions, which must be there.
/// Each file of theirs is compiled for its instructions: it calls no inline function of a header
/// that others use, for of those the linker keeps one copy.
void unpack_int4_avx2(const PackedRow&, const PackedPart&, std::uint16_t* out, std::int64_t stride);
void unpack_int8_avx2(const PackedRow&, const PackedPart&, std::uint16_t* out, std::int64_t stride);
void unpack_int4_avx512(const PackedRow&, const PackedPart&, std::uint16_t* out,
                        std::int64_t stride);
void unpack_int8_avx512(const PackedRow&, const PackedPart&, std::uint16_t* out,
                        std::int64_t stride);
void unpack_int8_avx512_bf16(const PackedRow&, const PackedPart&, std::uint16_t* out,
                             std::int64_t stride);

/// UnpackPart of every other format, by its kind of codes.
struct GroupUnpacks {
  UnpackPart int8;
  UnpackPart int8_with_zeros;
  UnpackPart int4;
  UnpackPart float8;
};
extern const GroupUnpacks kAvx2Groups;
extern const GroupUnpacks kAvx512Groups;
extern const GroupUnpacks kAvx512Bf16Groups;

/// Every value of an int4 weight: the bfloat16s of codes 0 to 15 under each byte of a scale.
struct Int4Values {
  alignas(64) std::uint16_t of[256][16];
};
const Int4Values& int4_values();

/// The same values' bytes.
struct Int4Bytes {
  alignas(64) std::uint8_t lower[256][16];
  alignas(64) std::uint8_t upper[256][16];
};
const Int4Bytes& int4_bytes();

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
