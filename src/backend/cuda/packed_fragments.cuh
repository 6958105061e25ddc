#pragma once

#include <cstdint>
#include <type_traits>

#include "backend/cuda/cuda_attention_mma.cuh"
#include "zero_infer/weight_format.h"

/// From packed codes to the fragments that tensor cores take: values as unpack_rows (src/packing)
/// gives them. The order of a contraction is free, so each of the four lanes that share a row takes
/// 32 neighbouring columns of 128: those of lane t feed eight mma of 16 columns, four columns each,
/// where 4 s, 4 s + 1 stand in for 2 t, 2 t + 1 and the next two for 2 t + 8, 2 t + 9. Thus a lane
/// reads whole blocks of codes and needs the scales of its own groups alone.
namespace zi {

/// Columns of a unit, and of a lane in it.
inline constexpr int kUnitCols = 128;
inline constexpr int kLaneCols = kUnitCols / 4;

/// (x & mask) | bits.
__device__ __forceinline__ std::uint32_t masked_or(std::uint32_t x, std::uint32_t mask,
                                                   std::uint32_t bits) {
  std::uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;\n" : "=r"(result) : "r"(x), "r"(mask), "r"(bits));
  return result;
}

/// a * b + c of pairs, rounded once.
template <typename T>
__device__ __forceinline__ std::uint32_t multiply_add_pairs(std::uint32_t a, std::uint32_t b,
                                                            std::uint32_t c) {
  std::uint32_t result;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  } else {
    asm("fma.rn.f16x2 %0, %1, %2, %3;\n" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  }
  return result;
}

/// A row's part of the fragments of eight mma: of mma s the pairs a[s][0] and a[s][1].
using LaneFragments = std::uint32_t[kLaneCols / 4][2];

/// kInt4Weights.
template <typename T>
struct Int4Fragments {
  static constexpr int kCodeBytes = 64;  // of a row of a unit
  static constexpr int kScaleBytes = 8;

  /// `codes`: the lane's 16 bytes; `scales`: the row's scales of the unit.
  static __device__ __forceinline__ void make(const std::byte* codes, const std::byte* scales,
                                              int lane_of_row, int, LaneFragments& a) {
    const uint4 block = *reinterpret_cast<const uint4*>(codes);
    const std::uint32_t two = reinterpret_cast<const std::uint16_t*>(scales)[lane_of_row];
    const std::uint32_t words[4] = {block.x, block.y, block.z, block.w};
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      const std::uint32_t byte =
          __byte_perm(two, 0, group == 0 ? 0x4040 : 0x4141);  // in both halves
      std::uint32_t scale;
      if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        scale = masked_or(byte << 8, 0x80008000u, masked_or(byte << 4, 0x07f007f0u, 0x38003800u));
      } else {
        scale = masked_or(byte << 8, 0x80008000u, (byte << 7) & 0x3f803f80u);
      }
      // Codes n become base + n with base 128 or 1024: (base + n) * scale - (base + 8) * scale is
      // exact.
      constexpr std::uint32_t kBase = std::is_same_v<T, __nv_bfloat16> ? 0x43004300u : 0x64006400u;
      constexpr std::uint32_t kTaken = std::is_same_v<T, __nv_bfloat16> ? 0xc308c308u : 0xe408e408u;
      const std::uint32_t offset = multiply_add_pairs<T>(scale, kTaken, 0x80008000u);
#pragma unroll
      for (int w = 2 * group; w < 2 * group + 2; ++w) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          a[2 * w + e / 2][e % 2] = multiply_add_pairs<T>(
              masked_or(words[w] >> (4 * e), 0x000f000fu, kBase), scale, offset);
        }
      }
    }
  }
};

/// kInt8Weights.
template <typename T>
struct Int8Fragments {
  static constexpr int kCodeBytes = 128;
  static constexpr int kScaleBytes = 4;

  /// `codes` and, `second` bytes on, the lane's other 16 bytes.
  static __device__ __forceinline__ void make(const std::byte* codes, const std::byte* scales,
                                              int lane_of_row, int second, LaneFragments& a) {
    const std::uint32_t byte = reinterpret_cast<const std::uint8_t*>(scales)[lane_of_row];
    // Codes, plus 128 and in sixteenths, are made the last bits of 2^19, which the offset takes
    // away: exact in float32.
    const float scale = __uint_as_float(
        masked_or(byte << 24, 0x80000000u, masked_or(byte << 20, 0x07f00000u, 0x38000000u)));
    const float offset = -524296.0f * scale;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 block = *reinterpret_cast<const uint4*>(codes + half * second);
      const std::uint32_t words[4] = {block.x, block.y, block.z, block.w};
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const std::uint32_t bytes = words[w] ^ 0x80808080u;
        const auto value = [&](std::uint32_t selector) {
          return fmaf(__uint_as_float(__byte_perm(bytes, 0x49000000u, selector)), scale, offset);
        };
        a[4 * half + w][0] = ptx::pack<T>(value(0x7540), value(0x7541));
        a[4 * half + w][1] = ptx::pack<T>(value(0x7542), value(0x7543));
      }
    }
  }
};

}  // namespace zi
