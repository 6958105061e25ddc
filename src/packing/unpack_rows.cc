#include "packing/unpack_rows.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/simd_clones.h"
#include "packing/packed_row.h"
#include "packing/unpack_part.h"
#include "packing/unpack_simd.h"

namespace zi {
namespace {

using Kind = WeightFormat::Kind;

/// The codes of a block, in the order of their columns.
ZI_INLINE void codes_of_int8(const std::byte* block, float* out) {
  std::int8_t bytes[16];
  std::memcpy(bytes, block, sizeof bytes);
  for (std::size_t i = 0; i < 16; ++i) out[i] = bytes[i];
}

ZI_INLINE void codes_of_int4(const std::byte* block, float* out) {
  std::uint32_t words[4];
  std::memcpy(words, block, sizeof words);
  for (std::size_t w = 0; w < 4; ++w) {
    for (std::size_t e = 0; e < 4; ++e) {
      const std::uint32_t pair = words[w] >> (4 * e);
      out[8 * w + 2 * e] = static_cast<float>(static_cast<std::int32_t>(pair & 15u));
      out[8 * w + 2 * e + 1] = static_cast<float>(static_cast<std::int32_t>(pair >> 16 & 15u));
    }
  }
}

ZI_INLINE void codes_of_float8(const std::byte* block, float* out) {
  std::uint8_t bytes[16];
  std::memcpy(bytes, block, sizeof bytes);
  for (std::size_t i = 0; i < 16; ++i) out[i] = e4m3_to_float(bytes[i]);
}

/// What is stored of a finite value.
struct ToFloat32 {
  using Type = float;
  ZI_INLINE static float of(float v) { return v; }
};
struct ToBFloat16 {
  using Type = std::uint16_t;
  ZI_INLINE static std::uint16_t of(float v) {
    const auto bits = std::bit_cast<std::uint32_t>(v);
    return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
};
struct ToFloat16 {
  using Type = std::uint16_t;
  ZI_INLINE static std::uint16_t of(float v) { return float_to_float16(v); }
};

template <Kind kKind, typename To>
ZI_INLINE void unpack(const PackedRow& row, const PackedPart& part, void* out,
                      std::int64_t stride) {
  constexpr std::int64_t kColumns = block_columns(kKind);
  constexpr std::int64_t kHalf = 16;  // a multiple of which every group is
  auto* to = static_cast<typename To::Type*>(out);
  const std::byte* packed = part.packed;
  for (std::int64_t r = 0; r < part.rows; ++r, packed += row.bytes, to += stride) {
    for (std::int64_t first = 0; first < part.columns; first += kColumns) {
      float codes[kColumns];
      const std::byte* const block = packed + (part.first + first) / kColumns * 16;
      if constexpr (kKind == Kind::kInt4) {
        codes_of_int4(block, codes);
      } else if constexpr (kKind == Kind::kFloat8) {
        codes_of_float8(block, codes);
      } else {
        codes_of_int8(block, codes);
      }
      for (std::int64_t half = 0; half < kColumns && first + half < part.columns; half += kHalf) {
        const std::int64_t group = (part.first + first + half) / row.group;
        const float zero = row.zero(packed, group);
        const float scale = row.scale(packed, group);
        typename To::Type* const at = to + first + half;
        const std::int64_t count = std::min(kHalf, part.columns - first - half);
        if (count == kHalf) {
          for (std::int64_t i = 0; i < kHalf; ++i) at[i] = To::of((codes[half + i] - zero) * scale);
        } else {
          for (std::int64_t i = 0; i < count; ++i) at[i] = To::of((codes[half + i] - zero) * scale);
        }
      }
    }
  }
}

#define ZI_UNPACK(name, kind, to)                                                       \
  ZI_SIMD_CLONES void name(const PackedRow& row, const PackedPart& part, to::Type* out, \
                           std::int64_t stride) {                                       \
    unpack<Kind::kind, to>(row, part, out, stride);                                     \
  }
ZI_UNPACK(int8_to_float32, kInt8, ToFloat32)
ZI_UNPACK(int8_to_bfloat16, kInt8, ToBFloat16)
ZI_UNPACK(int8_to_float16, kInt8, ToFloat16)
ZI_UNPACK(int4_to_float32, kInt4, ToFloat32)
ZI_UNPACK(int4_to_bfloat16, kInt4, ToBFloat16)
ZI_UNPACK(int4_to_float16, kInt4, ToFloat16)
ZI_UNPACK(float8_to_float32, kFloat8, ToFloat32)
ZI_UNPACK(float8_to_bfloat16, kFloat8, ToBFloat16)
ZI_UNPACK(float8_to_float16, kFloat8, ToFloat16)
#undef ZI_UNPACK

/// The functions of a kind.
struct Unpacks {
  void (*to_float32)(const PackedRow&, const PackedPart&, float*, std::int64_t);
  UnpackPart to_float16;
  UnpackPart to_bfloat16;
};

constexpr Unpacks unpacks_of(Kind kind) {
  switch (kind) {
    case Kind::kInt4:
      return {int4_to_float32, int4_to_float16, int4_to_bfloat16};
    case Kind::kFloat8:
      return {float8_to_float32, float8_to_float16, float8_to_bfloat16};
    default:
      return {int8_to_float32, int8_to_float16, int8_to_bfloat16};
  }
}

#if defined(__x86_64__)
const SimdUnpacks& simd_unpacks(InstructionSet set, bool float16) {
  if (set == InstructionSet::kAvx2) return float16 ? kAvx2ToFloat16 : kAvx2ToBFloat16;
  if (float16) return kAvx512ToFloat16;
  return set == InstructionSet::kAvx512 ? kAvx512ToBFloat16 : kAvx512Bf16ToBFloat16;
}
#endif

}  // namespace

UnpackPart unpack_part(const WeightFormat& format, InstructionSet set, DType to) {
  const bool float16 = to == DType::kFloat16;
#if defined(__x86_64__)
  if (set >= InstructionSet::kAvx2) {
    const SimdUnpacks& unpacks = simd_unpacks(set, float16);
    if (format == kInt8Weights) return unpacks.own_int8;
    if (format == kInt4Weights) return unpacks.own_int4;
    if (format.kind == Kind::kInt4) return unpacks.int4;
    if (format.kind == Kind::kFloat8) return unpacks.float8;
    return format.zeros ? unpacks.int8_with_zeros : unpacks.int8;
  }
#endif
  static_cast<void>(set);  // of other processors there is one
  const Unpacks unpacks = unpacks_of(format.kind);
  return float16 ? unpacks.to_float16 : unpacks.to_bfloat16;
}

void unpack_rows(const std::byte* packed, std::int64_t rows, std::int64_t cols,
                 const WeightFormat& format, DType to, void* out) {
  const PackedRow row(format, cols);
  const PackedPart all{packed, rows, 0, cols};
  if (to == DType::kFloat32) {
    unpacks_of(format.kind).to_float32(row, all, static_cast<float*>(out), cols);
  } else {
    unpack_part(format, instruction_set(), to)(row, all, static_cast<std::uint16_t*>(out), cols);
  }
}

}  // namespace zi
