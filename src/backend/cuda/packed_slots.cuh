#pragma once

#include "backend/cuda/packed_fragments.cuh"
#include "backend/cuda/row_scales.cuh"

/// Products of packed weights with few activation rows, whose scales come after the sums of groups.
///
/// Codes are multiplied as the numbers that their bits already are (CodeNumbers), so that two or
/// three instructions make the fragments of four or eight weights. An mma has columns for eight
/// activation rows. Of few rows they are slots for groups: the column of a slot holds the
/// activations of one row and one group, and zeros for the columns of other groups; so the sums of
/// all groups come apart, four of them in each lane. Where a unit is of one group, slots are rows.
namespace zi {

/// The lane's part of eight mma, of one set of eight slots.
using SlotFragments = std::uint32_t[8][2];

/// Scales of a byte as they are: copied to `shared` from a row's scales of the unit.
template <int kBytes>
struct ByteSlotScales {
  __device__ void finish_step(const RowScales&) {}
  __device__ void copy_step(std::uint32_t shared, const std::byte* row, const RowScales& scales,
                            int unit, bool there) {
    const std::byte* const from = row + scales.at + unit * kBytes;
    if constexpr (kBytes == 8) {
      ptx::copy_async_8(shared, from, there);
    } else {
      ptx::copy_async_4(shared, from, there);
    }
  }
};

/// One scale of any type a unit, as a float32: read to a register one step before it is put into
/// shared memory.
class GroupSlotScales {
 public:
  __device__ void finish_step(const RowScales& scales) {
    if (to_ == 0) return;
    const float scale = scale_from_bits(scales.type, bits_);
    asm volatile("st.shared.b32 [%0], %1;\n" ::"r"(to_), "r"(__float_as_uint(scale)) : "memory");
    to_ = 0;
  }
  __device__ void copy_step(std::uint32_t shared, const std::byte* row, const RowScales& scales,
                            int unit, bool) {
    const int group = min(unit * kUnitCols >> scales.shift, scales.last);
    to_ = shared;
    bits_ = scales.type == ScaleType::kFloat32
                ? __ldg(reinterpret_cast<const std::uint32_t*>(row + scales.at) + group)
                : __ldg(reinterpret_cast<const std::uint16_t*>(row + scales.at) + group);
  }

 private:
  std::uint32_t to_ = 0;
  std::uint32_t bits_ = 0;
};

/// kInt4Weights: a unit has eight groups of 16 columns, so that a set of slots is of one row. Lane
/// t's columns are groups 2 t and 2 t + 1: of mma 0 .. 3, and 4 .. 7.
struct Int4Slots {
  using Numbers = CodeNumbers<__nv_bfloat16>;
  using Scales = ByteSlotScales<8>;
  static constexpr bool kRowSlots = false;
  static constexpr int kRowsOfSet = 1;
  static constexpr int kUnitBytes = 64;  // codes of a row
  static constexpr int kScaleBytes = 8;
  static constexpr int kPieces = 1;  // of 16 bytes, of a lane
  static constexpr int kPieceCols = 32;
  static constexpr int kSecondCols = 16;  // from the columns of mma 0 .. 3 to those of 4 .. 7
  /// 2^53 and 2^49: with the numbers' 2^-133, sums are what they should be times 2^-80.
  static constexpr std::uint32_t kEven = 0x5a005a00u, kOdd = 0x58005800u;
  static constexpr std::uint32_t kTakenEven = Numbers::kTaken4, kTakenOdd = Numbers::kTaken8;

  static __device__ bool has(int slot, int lane, int half) { return slot == 2 * lane + half; }
  static __device__ int row_of(int) { return 0; }
  /// Where the lane's two scales are.
  static __device__ int scales_at(int lane) { return 2 * lane; }

  /// The pairs of a word of codes: those of two mma. Where there are two chains of sums, mma wait
  /// for each other half as often.
  template <int kChains>
  static __device__ __forceinline__ void add(float (&sums)[kChains][4], const uint4& upper,
                                             const uint4& lower, int, const SlotFragments& x) {
    const std::uint32_t u[4] = {upper.x, upper.y, upper.z, upper.w};
    const std::uint32_t l[4] = {lower.x, lower.y, lower.z, lower.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const std::uint32_t v = u[i / 2] >> i % 2 * 8, w = l[i / 2] >> i % 2 * 8;
      const std::uint32_t a[4] = {v & 0x000f000fu, w & 0x000f000fu, v & 0x00f000f0u,
                                  w & 0x00f000f0u};
      ptx::multiply_add<__nv_bfloat16>(sums[i % kChains], a, x[i][0], x[i][1]);
    }
  }
};

/// kInt8Weights: a unit has four groups of 32 columns, so that a set of slots is of two rows. Lane
/// t's columns are pieces t and t + 4 of 16: of mma 0 .. 3, and 4 .. 7.
struct Int8Slots {
  using Numbers = CodeNumbers<__nv_bfloat16>;
  using Scales = ByteSlotScales<4>;
  static constexpr bool kRowSlots = false;
  static constexpr int kRowsOfSet = 2;
  static constexpr int kUnitBytes = 128;
  static constexpr int kScaleBytes = 4;
  static constexpr int kPieces = 2;
  static constexpr int kPieceCols = 16;
  static constexpr int kSecondCols = 64;
  static constexpr std::uint32_t kEven = 0x58005800u, kOdd = kEven;  // 2^49: times 2^-84
  static constexpr std::uint32_t kTakenEven = Numbers::kTaken8, kTakenOdd = Numbers::kTaken8;

  static __device__ bool has(int slot, int lane, int half) {
    return slot % 4 == lane / 2 + 2 * half;
  }
  static __device__ int row_of(int slot) { return slot / 4; }
  static __device__ int scales_at(int lane) { return lane % 2 * 2; }

  template <int kChains>
  static __device__ __forceinline__ void add(float (&sums)[kChains][4], const uint4& upper,
                                             const uint4& lower, int piece,
                                             const SlotFragments& x) {
    const std::uint32_t u[4] = {upper.x, upper.y, upper.z, upper.w};
    const std::uint32_t l[4] = {lower.x, lower.y, lower.z, lower.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t v = u[i] ^ 0x80808080u, w = l[i] ^ 0x80808080u;  // codes + 128
      const std::uint32_t a[4] = {__byte_perm(v, 0, 0x4140), __byte_perm(w, 0, 0x4140),
                                  __byte_perm(v, 0, 0x4342), __byte_perm(w, 0, 0x4342)};
      ptx::multiply_add<__nv_bfloat16>(sums[i % kChains], a, x[4 * piece + i][0],
                                       x[4 * piece + i][1]);
    }
  }
};

/// Codes of a byte in groups of a unit or more, without zero points: a slot is a row. Lanes have
/// columns as in Int8Slots.
template <WeightFormat::Kind kKind>
struct ByteGroupSlots {
  static constexpr bool kFloat8 = kKind == WeightFormat::Kind::kFloat8;
  using Numbers = CodeNumbers<__nv_bfloat16>;
  using Scales = GroupSlotScales;
  static constexpr bool kRowSlots = true;
  static constexpr int kRowsOfSet = 8;
  static constexpr int kUnitBytes = 128;
  static constexpr int kScaleBytes = 4;
  static constexpr int kPieces = 2;
  static constexpr int kPieceCols = 16;
  static constexpr int kSecondCols = 64;
  /// 2^60, with the numbers' 2^-120; or as Int8Slots.
  static constexpr std::uint32_t kEven = kFloat8 ? 0x5d805d80u : 0x58005800u, kOdd = kEven;
  static constexpr float kFactor = kFloat8 ? 0x1p60f : 0x1p84f;  // what sums lack
  static constexpr std::uint32_t kTakenEven = kFloat8 ? 0 : Numbers::kTaken8;
  static constexpr std::uint32_t kTakenOdd = kTakenEven;

  static __device__ bool has(int, int, int) { return true; }
  static __device__ int row_of(int slot) { return slot; }
  static __device__ int scales_at(int) { return 0; }

  template <int kChains>
  static __device__ __forceinline__ void add(float (&sums)[kChains][4], const uint4& upper,
                                             const uint4& lower, int piece,
                                             const SlotFragments& x) {
    if constexpr (!kFloat8) {
      Int8Slots::add(sums, upper, lower, piece, x);
    } else {
      const std::uint32_t u[4] = {upper.x, upper.y, upper.z, upper.w};
      const std::uint32_t l[4] = {lower.x, lower.y, lower.z, lower.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::uint32_t a[4] = {number(u[i], 0x1404), number(l[i], 0x1404),
                                    number(u[i], 0x3424), number(l[i], 0x3424)};
        ptx::multiply_add<__nv_bfloat16>(sums[i % kChains], a, x[4 * piece + i][0],
                                         x[4 * piece + i][1]);
      }
    }
  }

 private:
  /// Two codes of a word, which `bytes` choose: sign, exponent and the rest of a number stand where
  /// those of a bfloat16 are, but for the bias.
  static __device__ __forceinline__ std::uint32_t number(std::uint32_t word, std::uint32_t bytes) {
    const std::uint32_t upper = __byte_perm(word, 0, bytes);
    return masked_or(upper, 0x80008000u, (upper & 0x7f007f00u) >> 4);
  }
};

/// Two scales as bfloat16s, times what sums lack.
__device__ __forceinline__ std::uint32_t scale_pair(std::uint32_t bytes) {
  const std::uint32_t both = __byte_perm(bytes, 0, 0x4140);
  return masked_or(both << 8, 0x80008000u, masked_or(both << 4, 0x07f007f0u, 0x60006000u));
}

/// x: the lane's fragments of a set of slots, which hold zeros wherever it has none. `from` is the
/// row of its slot, at its columns.
template <typename Slots>
__device__ __forceinline__ void load_slots(SlotFragments& x, const std::byte* from,
                                           const bool (&has)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (!has[half]) continue;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4 v = reinterpret_cast<const uint4*>(from + half * Slots::kSecondCols * 2)[i];
      x[4 * half + 2 * i][0] = v.x;
      x[4 * half + 2 * i][1] = v.y;
      x[4 * half + 2 * i + 1][0] = v.z;
      x[4 * half + 2 * i + 1][1] = v.w;
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    x[i][0] = multiply_pairs<__nv_bfloat16>(x[i][0], Slots::kEven);
    x[i][1] = multiply_pairs<__nv_bfloat16>(x[i][1], Slots::kOdd);
  }
}

}  // namespace zi
