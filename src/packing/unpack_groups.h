#pragma once

#include <immintrin.h>

#include "packing/unpack_simd.h"

/// Rows of any packed format, for files that are compiled for an instruction set of AVX2 or more.
namespace zi {
namespace {

/// Columns that are written at once: a block of int4 codes, two of others.
inline constexpr std::int64_t kStepColumns = 32;

/// The scales and zero points of one group of up to sixteen rows; see PackedRow::scale and zero.
class GroupScales {
 public:
  static constexpr std::int64_t kRows = 16;

  /// Those of `rows` rows from `packed` on.
  void read(const PackedRow& row, const std::byte* packed, std::int64_t rows, std::int64_t group) {
    const bool int4 = row.format.kind == WeightFormat::Kind::kInt4;
    const auto row_bytes = static_cast<std::int64_t>(row.bytes);
    const std::byte* at = packed + static_cast<std::int64_t>(row.scales_at) +
                          group * static_cast<std::int64_t>(row.scale_bytes);
    switch (row.format.scale) {
      case ScaleType::kFloat32:
        for (std::int64_t r = 0; r < rows; ++r) scale[r] = value_at<float>(at + r * row_bytes);
        break;
      case ScaleType::kFloat16:
        for (std::int64_t r = 0; r < rows; ++r) {
          const auto bits = value_at<std::uint16_t>(at + r * row_bytes);
          scale[r] = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
        }
        break;
      case ScaleType::kBFloat16:
        for (std::int64_t r = 0; r < rows; ++r) {
          scale[r] = float_of(std::uint32_t{value_at<std::uint16_t>(at + r * row_bytes)} << 16);
        }
        break;
      case ScaleType::kFloat8:
        for (std::int64_t r = 0; r < rows; ++r) {
          scale[r] = of_float8(value_at<std::uint8_t>(at + r * row_bytes), int4);
        }
        break;
    }
    if (!row.format.zeros) {
      for (std::int64_t r = 0; r < rows; ++r) zero[r] = int4 ? 8.0f : 0.0f;
      return;
    }
    const std::byte* const zeros = packed + static_cast<std::int64_t>(row.zeros_at) + group;
    for (std::int64_t r = 0; r < rows; ++r) {
      zero[r] = int4 ? static_cast<float>(value_at<std::uint8_t>(zeros + r * row_bytes)) / 8
                     : static_cast<float>(value_at<std::int8_t>(zeros + r * row_bytes));
    }
  }

  float scale[kRows];
  float zero[kRows];

  /// Whether no value of a code but zero is near a subnormal or an infinite float.
  bool ordinary(std::int64_t rows) const {
    bool all = true;
    for (std::int64_t r = 0; r < rows; ++r) {
      const float size = scale[r] < 0 ? -scale[r] : scale[r];
      all = all && (size == 0 || (size > 0x1p-100f && size < 0x1p100f));
    }
    return all;
  }

 private:
  template <typename T>
  static T value_at(const std::byte* at) {
    T value;
    __builtin_memcpy(&value, at, sizeof value);
    return value;
  }
  static float float_of(std::uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
  }
  static float of_float8(std::uint32_t byte, bool int4) {
    const std::uint32_t bias = int4 ? 127 - 15 : 127 - 19;
    return float_of(((byte & 0x80u) << 24) + ((byte & 0x7fu) << 20) + (bias << 23));
  }
};

/// Rows are taken by sixteen, and of those one group of columns after the other, as UnpackPieces
/// takes pieces. A `Group` is made of a scale and a zero point and writes kStepColumns at a time;
/// an `AnyGroup` as well, for scales that are not ordinary. A row has bytes beyond its last block
/// of codes, which may be read: its scales.
template <typename Group, typename AnyGroup = Group>
class UnpackGroups {
 public:
  static void run(const PackedRow& row, const PackedPart& part, std::uint16_t* out,
                  std::int64_t stride) {
    const std::int64_t end = part.first + part.columns;
    PackedPart some = part;
    for (std::int64_t r = 0; r < part.rows; r += GroupScales::kRows) {
      const std::int64_t left = part.rows - r;
      some.rows = left < GroupScales::kRows ? left : GroupScales::kRows;
      std::uint16_t* to = out + r * stride;
      for (some.first = part.first; some.first < end; some.first += some.columns) {
        const std::int64_t group = some.first / row.group;
        const std::int64_t next = (group + 1) * row.group;
        some.columns = (next < end ? next : end) - some.first;
        GroupScales scales;
        scales.read(row, some.packed, some.rows, group);
        some.ahead = scales.ordinary(some.rows) ? rows<Group>(row, some, scales, to, stride)
                                                : rows<AnyGroup>(row, some, scales, to, stride);
        to += some.columns;
      }
      some.packed += some.rows * static_cast<std::int64_t>(row.bytes);
    }
  }

 private:
  static constexpr std::int64_t kBlocks = 64 / Group::kCodeBytes;  // of a line of codes
  static constexpr std::int64_t kLine = kBlocks * kStepColumns;

  static const std::byte* codes_of(const std::byte* packed, std::int64_t column) {
    return packed + column / kStepColumns * Group::kCodeBytes;
  }

  /// Up to sixteen rows of a group. Returns what to ask memory for next: a line for each that is
  /// begun here.
  template <typename Of>
  static const std::byte* rows(const PackedRow& row, const PackedPart& part,
                               const GroupScales& scales, std::uint16_t* out, std::int64_t stride) {
    const auto row_bytes = static_cast<std::int64_t>(row.bytes);
    const std::int64_t stop = part.first + part.columns;
    const std::byte* ahead = part.ahead;
    std::int64_t c = part.first;
    const auto rest_to = [&](std::int64_t to) {
      for (std::int64_t r = 0; r < part.rows; ++r) {
        rest(Of(scales.scale[r], scales.zero[r]), part.packed + r * row_bytes, c, to,
             out + r * stride);
      }
      out += to - c;
      c = to;
    };
    if (c % kLine != 0) {
      const std::int64_t line = (c / kLine + 1) * kLine;
      rest_to(line < stop ? line : stop);
    }
    for (; c + kLine <= stop; c += kLine, out += kLine) {
      const std::byte* codes = codes_of(part.packed, c);
      std::uint16_t* to = out;
      for (std::int64_t r = 0; r < part.rows; ++r) {
        // To the second cache, without a branch: of lines that are here already it costs nothing.
        __builtin_prefetch(ahead, 0, 2);
        ahead += part.ahead_step;
        const Of group(scales.scale[r], scales.zero[r]);
#pragma GCC unroll 4
        for (std::int64_t b = 0; b < kBlocks; ++b) {
          group.write(codes + b * Group::kCodeBytes, to + b * kStepColumns);
        }
        codes += row_bytes;
        to += stride;
      }
    }
    if (c == stop) return ahead;
    for (std::int64_t r = 0; r < part.rows; ++r, ahead += part.ahead_step) {
      __builtin_prefetch(ahead, 0, 2);
    }
    rest_to(stop);
    return ahead;
  }

  /// Columns `c` to `stop` of a row, of one line of codes.
  template <typename Of>
  static void rest(const Of& group, const std::byte* packed, std::int64_t c, std::int64_t stop,
                   std::uint16_t* out) {
    constexpr std::int64_t kHalf = kStepColumns / 2;  // a multiple of which every group is
    while (c < stop) {
      const std::int64_t skipped = c % kStepColumns;  // of another group
      const std::int64_t left = stop - c;
      const std::int64_t count = left < kStepColumns - skipped ? left : kStepColumns - skipped;
      if (count == kStepColumns) {
        group.write(codes_of(packed, c), out);
      } else {
        alignas(64) std::uint16_t all[kStepColumns];
        group.write(codes_of(packed, c), all);
        if (count == kHalf) {
          __builtin_memcpy(out, all + skipped, kHalf * sizeof *out);
        } else {
          for (std::int64_t i = 0; i < count; ++i) out[i] = all[skipped + i];
        }
      }
      c += count;
      out += count;
    }
  }
};

}  // namespace
}  // namespace zi
