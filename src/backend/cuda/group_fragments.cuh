#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "backend/cuda/packed_copies.cuh"
#include "packing/group_codes.h"

/// Fragments of packed weights whose scales are no bytes: those of other programs' formats. They
/// are differences, code less zero point, which a 16-bit type holds exactly; scales are applied in
/// float32 to the sums of a group. So weights have the values of their format, and no rounding of
/// them to 16 bits.
///
/// Lane t of a row takes columns 8 t .. 8 t + 7 of each block of 32: four columns of each of two
/// mma, so that no mma has columns of two groups.
namespace zi {

/// Rows for which warps multiply by themselves (packed_mma.cuh).
inline constexpr int kMostGroupMmaRows = 32;

/// How codes less zero points become numbers: codes n of whole numbers are alone in 16 bits, which
/// are then n times the least number of the type (CodeNumbers), and kUp makes them n * kUnit.
template <typename T>
struct CodeDifferences;

template <>
struct CodeDifferences<__nv_bfloat16> {
  static constexpr std::uint32_t kUp = 0x7f007f00u, kUp16 = 0x7d007d00u;  // 2^127, 2^123
  static constexpr float kUnit = 0x1p-6f;
  static constexpr int kFloat8Shift = 4;                   // leaves value * 2^-120
  static constexpr std::uint32_t kFloat8Up = 0x7b807b80u;  // 2^120
  static constexpr float kFloat8Unit = 1;
};

template <>
struct CodeDifferences<__half> {
  static constexpr std::uint32_t kUp = 0x78007800u, kUp16 = 0x68006800u;  // 2^15, 2^11
  static constexpr float kUnit = 0x1p-9f;
  static constexpr int kFloat8Shift = 1;  // leaves value * 2^-8, which float16 has room for
  static constexpr std::uint32_t kFloat8Up = 0;
  static constexpr float kFloat8Unit = 0x1p-8f;
};

/// What becomes of the scale and the zero point of a group, in shared memory: `scale` is for the
/// group's sums, with what those lack; `offset`, where the kernel knows zero points, is less the
/// zero point in units of kUnit, as a pair of T.
struct GroupFactor {
  float scale;
  std::uint32_t offset;
};

/// The scales and zero points of a thread's row in a step. They are read to registers one step
/// before they are put into shared memory.
template <typename StageOf>
class GroupScaleCopies {
  using Fragments = typename StageOf::Fragments;
  static constexpr int kCount = StageOf::kUnits * Fragments::kScaledGroups;  // of a step
  static constexpr int kGroupCols = kUnitCols / Fragments::kScaledGroups;    // at least

 public:
  /// Puts those of the last copy_step where it was told to.
  __device__ void finish_step(const RowScales& scales) {
    if (to_ == 0) return;
#pragma unroll
    for (int g = 0; g < kCount; ++g) {
      float zero = Fragments::kMiddle;
      if (Fragments::kOffsets && scales.zeros_at >= 0) {
        const std::uint32_t byte = zeros_apart_ ? zeros_[g] : zeros_[g / 4] >> g % 4 * 8;
        zero = zero_point_of(static_cast<std::uint8_t>(byte), Fragments::kKind);
      }
      const GroupFactor factor = Fragments::factor(scale_of(scales, g), zero);
      const std::uint32_t to = to_ + g * Fragments::kFactorBytes;
      if constexpr (Fragments::kOffsets) {
        asm volatile("st.shared.v2.b32 [%0], {%1, %2};\n" ::"r"(to),
                     "r"(__float_as_uint(factor.scale)), "r"(factor.offset)
                     : "memory");
      } else {
        asm volatile("st.shared.b32 [%0], %1;\n" ::"r"(to), "r"(__float_as_uint(factor.scale))
                     : "memory");
      }
    }
    to_ = 0;
  }

  /// `first` is the step's first column.
  __device__ void copy_step(std::uint32_t to, const std::byte* row, const RowScales& scales,
                            int first) {
    to_ = to;
    const std::byte* const at = row + scales.at;
    const std::byte* const zeros = row + scales.zeros_at;
    const int group = first >> scales.shift;
    const auto group_of = [&](int g) {  // columns behind the last are multiplied by zeros
      return min((first + g * kGroupCols) >> scales.shift, scales.last);
    };
    // Of other groups and at the end of a row, one by one.
    apart_ = kGroupCols >> scales.shift != 1 || group + kCount - 1 > scales.last;
    if (!apart_) {
      if (scales.type == ScaleType::kFloat32) {
        load<kCount * 4>(scales_, at + group * 4);
      } else {
        load<kCount * 2>(scales_, at + group * 2);
      }
    } else {
#pragma unroll
      for (int g = 0; g < kCount; ++g) {
        if (g > 0 && scales.last == 0) break;  // of the whole row
        scales_[g] = scales.type == ScaleType::kFloat32
                         ? __ldg(reinterpret_cast<const std::uint32_t*>(at) + group_of(g))
                         : __ldg(reinterpret_cast<const std::uint16_t*>(at) + group_of(g));
      }
    }
    if constexpr (!Fragments::kOffsets) return;
    if (scales.zeros_at < 0) return;
    zeros_apart_ = apart_ || scales.zeros_at % kCount != 0;
    if (!zeros_apart_) {
      load<kCount>(zeros_, zeros + group);
    } else {
#pragma unroll
      for (int g = 0; g < kCount; ++g) {
        zeros_[g] = __ldg(reinterpret_cast<const std::uint8_t*>(zeros) + group_of(g));
      }
    }
  }

  /// The row is always given from its begin.
  static __device__ int advance(int) { return 0; }

 private:
  /// kBytes from an address that is a multiple of them, or of 16.
  template <int kBytes, int kWords>
  static __device__ void load(std::uint32_t (&to)[kWords], const std::byte* from) {
    if constexpr (kBytes == 1) {
      to[0] = __ldg(reinterpret_cast<const std::uint8_t*>(from));
    } else if constexpr (kBytes == 2) {
      to[0] = __ldg(reinterpret_cast<const std::uint16_t*>(from));
    } else if constexpr (kBytes == 4) {
      to[0] = __ldg(reinterpret_cast<const std::uint32_t*>(from));
    } else if constexpr (kBytes == 8) {
      const uint2 v = __ldg(reinterpret_cast<const uint2*>(from));
      to[0] = v.x;
      to[1] = v.y;
    } else {
#pragma unroll
      for (int i = 0; i < kBytes / 16; ++i) {
        const uint4 v = __ldg(reinterpret_cast<const uint4*>(from) + i);
        to[4 * i] = v.x;
        to[4 * i + 1] = v.y;
        to[4 * i + 2] = v.z;
        to[4 * i + 3] = v.w;
      }
    }
  }

  __device__ float scale_of(const RowScales& scales, int g) const {
    std::uint32_t bits = scales_[g];
    if (apart_ && scales.last == 0) bits = scales_[0];
    if (!apart_ && scales.type != ScaleType::kFloat32) {
      bits = scales_[g / 2] >> g % 2 * 16 & 0xffffu;
    }
    return scale_from_bits(scales.type, bits);
  }

  std::uint32_t to_ = 0;
  // As they are stored, side by side or one in each.
  std::uint32_t scales_[kCount], zeros_[kCount];
  bool apart_, zeros_apart_;
};

/// Whether kernels for so many groups of a unit know zero points. For large groups of bytes they
/// do not, for the sake of longer steps: few such formats have any.
constexpr bool has_offsets(WeightFormat::Kind kind, int groups) {
  return kind == WeightFormat::Kind::kInt4 || (kind == WeightFormat::Kind::kInt8 && groups > 1);
}

/// Of a unit that has kGroups groups at most: one, or four.
template <WeightFormat::Kind kOfKind, int kGroups>
struct GroupFragments {
  template <typename T>
  struct Of {
    static constexpr WeightFormat::Kind kKind = kOfKind;
    static constexpr bool kInt4 = kKind == WeightFormat::Kind::kInt4;
    static constexpr bool kFloat8 = kKind == WeightFormat::Kind::kFloat8;
    using Numbers = CodeDifferences<T>;
    static constexpr int kCodeBytes = kInt4 ? 64 : 128;
    /// Whether the kernel knows zero points.
    static constexpr bool kOffsets = has_offsets(kKind, kGroups);
    static constexpr int kFactorBytes = kOffsets ? 8 : 4;
    static constexpr int kScaleBytes = kGroups * kFactorBytes;
    static constexpr int kScaledGroups = kGroups;
    static constexpr int kMostMmaRows = kMostGroupMmaRows;
    static constexpr int kMostRows = kGroups == 1 ? 64 : kMostMmaRows;
    static constexpr float kFactor = 1;
    /// The zero point of a format without.
    static constexpr float kMiddle = kInt4 ? kInt4Middle : 0;
    template <typename StageOf>
    using Scales = GroupScaleCopies<StageOf>;

    /// So that lanes hit all banks that read words t of pieces j (int4) of eight rows, or half
    /// pieces t from 2 j on of four rows.
    static __device__ constexpr int code_place(int row, int piece, int pieces) {
      if (!kInt4) return piece ^ (row & 3) << 1;
      return pieces == 4 ? piece ^ (row >> 1 & 3) : piece ^ (row & 7);
    }
    static __device__ constexpr int x_piece(int lane_of_row, int j) { return 4 * j + lane_of_row; }
    /// So that lanes hit all banks that read pieces 4 j + t of two rows.
    static __device__ constexpr int x_place(int row, int piece) { return piece ^ (row & 1) << 2; }

    static __device__ __forceinline__ GroupFactor factor(float scale, float zero) {
      if constexpr (kFloat8) return {scale * (1 / Numbers::kFloat8Unit), 0};
      // Codes of int8 become whole numbers from zero on.
      const float offset = -(kInt4 ? zero : zero + 128) * Numbers::kUnit;
      return {scale * (1 / Numbers::kUnit), ptx::pack<T>(offset, offset)};
    }

    struct Lane {
      static constexpr int kBlocks = kUnitCols / 32;
      static constexpr int kWords = kCodeBytes / 64;  // of a block, of a lane
      std::uint32_t words[kBlocks][kWords];
      std::uint32_t offsets[kGroups];

      template <int kPieces, int kHalf>
      __device__ __forceinline__ void load_half(const std::byte* codes, int row, int first) {
        const int lane_of_row = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
        for (int i = 0; i < kBlocks / 2; ++i) {
          const int j = kHalf * (kBlocks / 2) + i;
          if constexpr (kInt4) {
            words[j][0] = *reinterpret_cast<const std::uint32_t*>(
                codes + code_place(row, first + j, kPieces) * 16 + lane_of_row * 4);
          } else {
            const auto two = *reinterpret_cast<const uint2*>(
                codes + code_place(row, first + 2 * j, kPieces) * 16 + lane_of_row * 8);
            words[j][0] = two.x;
            words[j][kWords - 1] = two.y;
          }
        }
      }

      __device__ __forceinline__ void load_scales(const std::byte* scales) {
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          offsets[g] = kOffsets ? reinterpret_cast<const GroupFactor*>(scales)[g].offset
                                : factor(0, kMiddle).offset;
        }
      }

      template <int kHalf>
      __device__ __forceinline__ void make(HalfFragments& a) const {
#pragma unroll
        for (int i = 0; i < kBlocks / 2; ++i) {
          const int j = kHalf * (kBlocks / 2) + i;
          const std::uint32_t offset = offsets[j * kGroups / kBlocks];
          if constexpr (kInt4) {
            make_int4(words[j][0], offset, a[2 * i]);
            make_int4(words[j][0] >> 8, offset, a[2 * i + 1]);
          } else {
            make_bytes(words[j][0], offset, a[2 * i]);
            make_bytes(words[j][kWords - 1], offset, a[2 * i + 1]);
          }
        }
      }
    };

   private:
    static __device__ __forceinline__ void make_int4(std::uint32_t word, std::uint32_t offset,
                                                     std::uint32_t (&pairs)[2]) {
      pairs[0] = multiply_add_pairs<T>(word & 0x000f000fu, Numbers::kUp, offset);
      pairs[1] = multiply_add_pairs<T>(word & 0x00f000f0u, Numbers::kUp16, offset);
    }

    static __device__ __forceinline__ void make_bytes(std::uint32_t word, std::uint32_t offset,
                                                      std::uint32_t (&pairs)[2]) {
      if constexpr (kFloat8) {
        // Sign, exponent and the rest of a number stand where those of T are, but for the bias.
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const std::uint32_t upper = __byte_perm(word, 0, i == 0 ? 0x1404 : 0x3424);
          const std::uint32_t number =
              masked_or(upper, 0x80008000u, (upper & 0x7f007f00u) >> Numbers::kFloat8Shift);
          pairs[i] =
              Numbers::kFloat8Up == 0 ? number : multiply_pairs<T>(number, Numbers::kFloat8Up);
        }
      } else {
        const std::uint32_t bytes = word ^ 0x80808080u;  // codes + 128
        pairs[0] = multiply_add_pairs<T>(__byte_perm(bytes, 0, 0x4140), Numbers::kUp, offset);
        pairs[1] = multiply_add_pairs<T>(__byte_perm(bytes, 0, 0x4342), Numbers::kUp, offset);
      }
    }
  };
};

/// A lane's scales of a unit: of the warp's rows g and g + 8.
template <int kGroups>
struct GroupFactors {
  float scale[kGroups][2];

  template <typename StageOf>
  __device__ __forceinline__ void read(const std::byte* scales, int unit) {
    const int row =
        static_cast<int>(threadIdx.x) / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
    const std::byte* const at =
        scales + row * StageOf::kScaleRowBytes + unit * StageOf::Fragments::kScaleBytes;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        scale[g][half] = *reinterpret_cast<const float*>(at + half * 8 * StageOf::kScaleRowBytes +
                                                         g * StageOf::Fragments::kFactorBytes);
      }
    }
  }

  /// to += the sums of a group, in the order that ptx::multiply_add leaves them in.
  template <int kCount>
  __device__ __forceinline__ void add(float (&to)[kCount], const float (&sums)[kCount],
                                      int group) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = fmaf(scale[group][i / 2 % 2], sums[i], to[i]);
  }
};

template <>
struct GroupFactors<0> {};

}  // namespace zi
