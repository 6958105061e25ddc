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

template <typename StageOf>
class ByteScaleCopies;

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

/// a * b of pairs.
template <typename T>
__device__ __forceinline__ std::uint32_t multiply_pairs(std::uint32_t a, std::uint32_t b) {
  return multiply_add_pairs<T>(a, b, 0x80008000u);
}

/// A row's part of the fragments of four mma: of mma s the pairs a[s][0] and a[s][1]; and of both
/// halves of a unit.
using HalfFragments = std::uint32_t[kLaneCols / 8][2];
using LaneFragments = HalfFragments[2];

/// How codes become numbers without a conversion: the bits of a code n, alone in 16 bits, are
/// already a number. As a bfloat16 they are n * 2^-133, up to n = 255, and codes in bits 4 .. 7 are
/// sixteen times that: below its least exponent the format is linear, and so is the step from there
/// to the next. float16 has no room for what these numbers would have to be multiplied by; there
/// the bits above make them 1024 + n.
template <typename T>
struct CodeNumbers;

template <>
struct CodeNumbers<__nv_bfloat16> {
  static constexpr std::uint32_t kBase = 0;
  static constexpr float kInt4Factor = 0x1p37f, kInt8Factor = 0x1p33f;
  static constexpr std::uint32_t kTaken4 = 0x80088008u;  // - 8 * 2^-133
  static constexpr std::uint32_t kTaken8 = 0x80808080u;  // - 128 * 2^-133
  static constexpr std::uint32_t kSixteenth = 0x3d803d80u;

  /// The scales of bytes that stand in both halves' lower bytes, times 2^96 (int4) or 2^100 (int8).
  static __device__ __forceinline__ std::uint32_t scales(std::uint32_t bytes) {
    return masked_or(bytes << 8, 0x80008000u, masked_or(bytes << 4, 0x07f007f0u, 0x68006800u));
  }
};

template <>
struct CodeNumbers<__half> {
  static constexpr std::uint32_t kBase = 0x64006400u;
  static constexpr float kInt4Factor = 1, kInt8Factor = 1;
  static constexpr std::uint32_t kTaken4 = 0xe408e408u;  // - (1024 + 8)
  static constexpr std::uint32_t kTaken8 = 0xe480e480u;  // - (1024 + 128)
  static constexpr std::uint32_t kSixteenth = 0x2c002c00u;

  /// Exact, though the least of them have exponent 0.
  static __device__ __forceinline__ std::uint32_t scales(std::uint32_t bytes) {
    return masked_or(bytes << 8, 0x80008000u, (bytes << 7) & 0x3f803f80u);
  }
};

/// What kernels ask of fragments: here of those that are values, their scales in them.
///
///     kCodeBytes, kScaleBytes   of a row of a unit
///     kScaledGroups             groups of a unit whose sums are to be scaled; 0: none
///     kFactor                   what sums lack
///     kMostMmaRows              activation rows for which warps multiply by themselves
///                               (packed_mma.cuh); warpgroups do for more (packed_wgmma.cuh)
///     kMostRows                 for which there are kernels
///     Scales<Stage>             copies scales
///     code_place(row, piece, pieces)   where a 16-byte piece of a row of so many is
///     x_piece(lane_of_row, j)          of a unit's activations, the j-th of a lane
///     x_place(row, piece)              where that is in its row
///     Lane                      what a lane has of a row of a unit, first its half 0:
///                               load_scales(scales), then load_half<pieces, half>(codes, row,
///                               first) of the unit whose pieces of codes begin with `first`, and
///                               make<half>(a)
struct ValueFragments {
  static constexpr int kScaledGroups = 0;
  static constexpr int kMostMmaRows = 16;
  static constexpr int kMostRows = 64;
  template <typename StageOf>
  using Scales = ByteScaleCopies<StageOf>;

  static __device__ constexpr int x_piece(int lane_of_row, int j) { return 4 * lane_of_row + j; }
  /// So that lanes hit all banks that read pieces 4 t + j of a unit.
  static __device__ constexpr int x_place(int row, int piece) {
    return piece ^ (piece >> 3 & 1) ^ (row & 1) << 1;
  }
};

/// kInt4Weights.
template <typename T>
struct Int4Fragments : ValueFragments {
  using Numbers = CodeNumbers<T>;
  static constexpr int kCodeBytes = 64;  // of a row of a unit
  static constexpr int kScaleBytes = 8;
  static constexpr float kFactor = Numbers::kInt4Factor;

  /// So that lanes hit all banks that read pieces 4 u + t of two rows.
  static __device__ constexpr int code_place(int row, int piece, int pieces) {
    return pieces == 4 ? piece : piece ^ (row & 1) << 2;
  }

  struct Lane {
    std::uint32_t words[2][2];
    // Of the codes in bits 0 .. 3 and 8 .. 11 of a half word, and of those in bits 4 .. 7 and so
    // on; a half's in a half.
    std::uint32_t scale[2], offset[2];

    template <int kPieces, int kHalf>
    __device__ __forceinline__ void load_half(const std::byte* codes, int row, int first) {
      if constexpr (kHalf == 1) {  // loaded with the other, to be used from here on
        asm volatile("" : "+r"(words[1][0]), "+r"(words[1][1]));
        return;
      }
      const int lane_of_row = static_cast<int>(threadIdx.x) % 4;
      const uint4 block = *reinterpret_cast<const uint4*>(
          codes + code_place(row, first + lane_of_row, kPieces) * 16);
      words[0][0] = block.x;
      words[0][1] = block.y;
      words[1][0] = block.z;
      words[1][1] = block.w;
    }

    __device__ __forceinline__ void load_scales(const std::byte* scales) {
      const int lane_of_row = static_cast<int>(threadIdx.x) % 4;
      const std::uint32_t two = reinterpret_cast<const std::uint16_t*>(scales)[lane_of_row];
      scale[0] = Numbers::scales(__byte_perm(two, 0, 0x4140));
      scale[1] = multiply_pairs<T>(scale[0], Numbers::kSixteenth);
      offset[0] = multiply_pairs<T>(scale[0], Numbers::kTaken4);
      offset[1] = std::is_same_v<T, __nv_bfloat16> ? offset[0]
                                                   : multiply_pairs<T>(scale[1], Numbers::kTaken8);
    }

    template <int kHalf>
    __device__ __forceinline__ void make(HalfFragments& a) const {
      constexpr std::uint32_t kBoth = kHalf == 0 ? 0x1010 : 0x3232;  // halves alike
#pragma unroll
      for (int w = 0; w < 2; ++w) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const std::uint32_t number = masked_or(
              words[kHalf][w] >> e / 2 * 8, e % 2 == 0 ? 0x000f000fu : 0x00f000f0u, Numbers::kBase);
          a[2 * w + e / 2][e % 2] = multiply_add_pairs<T>(
              number, __byte_perm(scale[e % 2], 0, kBoth), __byte_perm(offset[e % 2], 0, kBoth));
        }
      }
    }
  };
};

/// kInt8Weights.
template <typename T>
struct Int8Fragments : ValueFragments {
  using Numbers = CodeNumbers<T>;
  static constexpr int kCodeBytes = 128;
  static constexpr int kScaleBytes = 4;
  static constexpr float kFactor = Numbers::kInt8Factor;

  /// So that lanes hit all banks that read pieces 2 t, and then 2 t + 1, of two rows.
  static __device__ constexpr int code_place(int row, int piece, int) { return piece ^ (row & 1); }

  struct Lane {
    std::uint32_t words[2][4];
    std::uint32_t scale, offset;

    template <int kPieces, int kHalf>
    __device__ __forceinline__ void load_half(const std::byte* codes, int row, int first) {
      const int lane_of_row = static_cast<int>(threadIdx.x) % 4;
      const uint4 block = *reinterpret_cast<const uint4*>(
          codes + code_place(row, first + 2 * lane_of_row + kHalf, kPieces) * 16);
      words[kHalf][0] = block.x;
      words[kHalf][1] = block.y;
      words[kHalf][2] = block.z;
      words[kHalf][3] = block.w;
    }

    __device__ __forceinline__ void load_scales(const std::byte* scales) {
      const int lane_of_row = static_cast<int>(threadIdx.x) % 4;
      const std::uint32_t byte = reinterpret_cast<const std::uint8_t*>(scales)[lane_of_row];
      scale = Numbers::scales(__byte_perm(byte, 0, 0x4040));
      // A scale of int8 is a sixteenth of the same byte of int4.
      if constexpr (std::is_same_v<T, __half>)
        scale = multiply_pairs<T>(scale, Numbers::kSixteenth);
      offset = multiply_pairs<T>(scale, Numbers::kTaken8);
    }

    template <int kHalf>
    __device__ __forceinline__ void make(HalfFragments& a) const {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const std::uint32_t bytes = words[kHalf][w] ^ 0x80808080u;  // codes + 128
        a[w][0] = multiply_add_pairs<T>(__byte_perm(bytes, Numbers::kBase, 0x5150), scale, offset);
        a[w][1] = multiply_add_pairs<T>(__byte_perm(bytes, Numbers::kBase, 0x5352), scale, offset);
      }
    }
  };
};

}  // namespace zi
