#include "packing/unpack_rows.h"

#include <algorithm>
#include <bit>

#include "base/simd_clones.h"
#include "packing/packed_row.h"

namespace zi {
namespace {

/// Codes become floats in pieces of this many columns, which stay in registers or the first cache.
constexpr std::int64_t kPiece = 64;

ZI_INLINE void codes_of_int8(const std::byte* codes, std::int64_t count, float* out) {
  const auto* in = reinterpret_cast<const std::int8_t*>(codes);
  for (std::int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(in[i]);
}

/// From an even column on.
ZI_INLINE void codes_of_int4(const std::byte* codes, std::int64_t count, float* out) {
  const auto* in = reinterpret_cast<const std::uint8_t*>(codes);
  for (std::int64_t i = 0; i < count / 2; ++i) {
    out[2 * i] = static_cast<float>(in[i] & 15);
    out[2 * i + 1] = static_cast<float>(in[i] >> 4);
  }
  if (count % 2 != 0) out[count - 1] = static_cast<float>(in[count / 2] & 15);
}

/// What is stored of a value in 16 bits or 32.
struct ToFloat32 {
  using Type = float;
  ZI_INLINE static float of(float v) { return v; }
};
struct ToBFloat16 {
  using Type = std::uint16_t;
  ZI_INLINE static std::uint16_t of(float v) {  // of a finite value
    const auto bits = std::bit_cast<std::uint32_t>(v);
    return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
};
struct ToFloat16 {
  using Type = std::uint16_t;
  ZI_INLINE static std::uint16_t of(float v) { return float_to_float16(v); }
};

/// One group: out[i] = scale * (code[i] - zero).
template <WeightFormat::Kind kKind, typename To>
ZI_INLINE void unpack_group(const std::byte* codes, std::int64_t count, float zero, float scale,
                            typename To::Type* out) {
  float values[kPiece];
  std::int64_t done = 0;
  for (; done + kPiece <= count; done += kPiece) {
    if constexpr (kKind == WeightFormat::Kind::kInt4) {
      codes_of_int4(codes + done / 2, kPiece, values);
    } else {
      codes_of_int8(codes + done, kPiece, values);
    }
    for (std::int64_t i = 0; i < kPiece; ++i) out[done + i] = To::of((values[i] - zero) * scale);
  }
  const std::int64_t rest = count - done;
  if constexpr (kKind == WeightFormat::Kind::kInt4) {
    codes_of_int4(codes + done / 2, rest, values);
  } else {
    codes_of_int8(codes + done, rest, values);
  }
  for (std::int64_t i = 0; i < rest; ++i) out[done + i] = To::of((values[i] - zero) * scale);
}

template <WeightFormat::Kind kKind, typename To, bool kScaled>
ZI_INLINE void unpack(const std::byte* packed, std::int64_t rows, const PackedRow& row, void* out) {
  auto* to = static_cast<typename To::Type*>(out);
  for (std::int64_t r = 0; r < rows; ++r, packed += row.bytes, to += row.cols) {
    for (std::int64_t g = 0; g < row.groups; ++g) {
      const std::int64_t first = g * row.group;
      const auto at =
          static_cast<std::size_t>(kKind == WeightFormat::Kind::kInt4 ? first / 2 : first);
      unpack_group<kKind, To>(packed + at, std::min(row.group, row.cols - first),
                              row.zero(packed, g), kScaled ? row.scale(packed, g) : 1.0f,
                              to + first);
    }
  }
}

#define ZI_UNPACK(name, kind, to, scaled)                                                    \
  ZI_SIMD_CLONES void name(const std::byte* packed, std::int64_t rows, const PackedRow& row, \
                           void* out) {                                                      \
    unpack<WeightFormat::Kind::kind, to, scaled>(packed, rows, row, out);                    \
  }
ZI_UNPACK(int8_to_float32, kInt8, ToFloat32, true)
ZI_UNPACK(int8_to_bfloat16, kInt8, ToBFloat16, true)
ZI_UNPACK(int8_to_float16, kInt8, ToFloat16, true)
ZI_UNPACK(int4_to_float32, kInt4, ToFloat32, true)
ZI_UNPACK(int4_to_bfloat16, kInt4, ToBFloat16, true)
ZI_UNPACK(int4_to_float16, kInt4, ToFloat16, true)
ZI_UNPACK(int8_codes_float32, kInt8, ToFloat32, false)
ZI_UNPACK(int8_codes_bfloat16, kInt8, ToBFloat16, false)
ZI_UNPACK(int8_codes_float16, kInt8, ToFloat16, false)
ZI_UNPACK(int4_codes_float32, kInt4, ToFloat32, false)
ZI_UNPACK(int4_codes_bfloat16, kInt4, ToBFloat16, false)
ZI_UNPACK(int4_codes_float16, kInt4, ToFloat16, false)
#undef ZI_UNPACK

using Unpack = void (*)(const std::byte*, std::int64_t, const PackedRow&, void*);

/// By kind, then by DType.
constexpr Unpack kScaled[2][3] = {{int8_to_float32, int8_to_float16, int8_to_bfloat16},
                                  {int4_to_float32, int4_to_float16, int4_to_bfloat16}};
constexpr Unpack kCodes[2][3] = {{int8_codes_float32, int8_codes_float16, int8_codes_bfloat16},
                                 {int4_codes_float32, int4_codes_float16, int4_codes_bfloat16}};

Unpack choose(const Unpack (&table)[2][3], const WeightFormat& format, DType to) {
  return table[format.kind == WeightFormat::Kind::kInt4 ? 1 : 0][static_cast<std::size_t>(to)];
}

}  // namespace

void unpack_rows(const std::byte* packed, std::int64_t rows, std::int64_t cols,
                 const WeightFormat& format, DType to, void* out) {
  choose(kScaled, format, to)(packed, rows, PackedRow(format, cols), out);
}

void unpack_codes(const std::byte* packed, std::int64_t rows, std::int64_t cols,
                  const WeightFormat& format, DType to, void* out) {
  choose(kCodes, format, to)(packed, rows, PackedRow(format, cols), out);
}

void row_scales(const std::byte* packed, std::int64_t rows, std::int64_t cols,
                const WeightFormat& format, float* out) {
  const PackedRow row(format, cols);
  for (std::int64_t r = 0; r < rows; ++r, packed += row.bytes) out[r] = row.scale(packed, 0);
}

}  // namespace zi
