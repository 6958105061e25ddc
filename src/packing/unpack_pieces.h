#pragma once

#include "packing/unpack_simd.h"

namespace zi {

/// Codes and scales of a part's rows, 32 columns at a time, by `Columns` (of one instruction set: a
/// type of its own in an anonymous namespace, so that each set has code of its own). A row has
/// bytes beyond its last block of codes, which may be read: its scales.
template <typename Columns>
class UnpackPieces {
 public:
  static constexpr std::int64_t kColumns = 32;
  static constexpr std::int64_t kBlocks = 64 / Columns::kCodeBytes;  // of a line of codes
  static constexpr std::int64_t kPiece = kBlocks * kColumns;

  /// Rows are taken by sixteen, and of those a piece of columns after the other: a tile of sixteen
  /// by a piece is what most callers want.
  static void run(const Columns& columns, const PackedRow& row, const PackedPart& part,
                  std::uint16_t* out, std::int64_t stride) {
    constexpr std::int64_t kRows = 16;
    const std::int64_t block = part.first / kColumns;
    const std::byte* codes = part.packed + block * Columns::kCodeBytes;
    const std::byte* scales =
        part.packed + static_cast<std::int64_t>(row.scales_at) + block * Columns::kScales;
    const auto row_bytes = static_cast<std::int64_t>(row.bytes);
    const std::byte* ahead = part.ahead;
    for (std::int64_t r = 0; r < part.rows; r += kRows) {
      const std::int64_t rows = part.rows - r < kRows ? part.rows - r : kRows;
      const std::byte* code = codes;
      const std::byte* scale = scales;
      std::int64_t c = 0;
      for (; c + kPiece <= part.columns; c += kPiece) {
        ahead =
            piece(columns, code, scale, rows, row_bytes, ahead, part.ahead_step, out + c, stride);
        code += kPiece / kColumns * Columns::kCodeBytes;
        scale += kPiece / kColumns * Columns::kScales;
      }
      for (; c < part.columns; c += kColumns) {
        const std::int64_t left = part.columns - c;
        some(columns, code, scale, rows, row_bytes, left < kColumns ? left : kColumns, out + c,
             stride);
        code += Columns::kCodeBytes;
        scale += Columns::kScales;
      }
      codes += rows * row_bytes;
      scales += rows * row_bytes;
      out += rows * stride;
    }
  }

 private:
  /// Returns what to ask for next.
  static const std::byte* piece(const Columns& columns, const std::byte* code,
                                const std::byte* scale, std::int64_t rows, std::int64_t row_bytes,
                                const std::byte* ahead, std::int64_t ahead_step, std::uint16_t* out,
                                std::int64_t stride) {
    constexpr std::int64_t kCode = Columns::kCodeBytes, kScale = Columns::kScales;
    for (std::int64_t r = 0; r < rows; ++r) {
      // To the second cache, without a branch: of lines that are here already it costs nothing.
      __builtin_prefetch(ahead, 0, 2);
      ahead += ahead_step;
#pragma GCC unroll 4
      for (std::int64_t b = 0; b < kBlocks; ++b) {
        columns.write(code + b * kCode, scale + b * kScale, out + b * kColumns);
      }
      code += row_bytes;
      scale += row_bytes;
      out += stride;
    }
    return ahead;
  }

  static void some(const Columns& columns, const std::byte* code, const std::byte* scale,
                   std::int64_t rows, std::int64_t row_bytes, std::int64_t count,
                   std::uint16_t* out, std::int64_t stride) {
    for (std::int64_t r = 0; r < rows; ++r) {
      if (count == kColumns) {
        columns.write(code, scale, out);
      } else {
        alignas(64) std::uint16_t all[kColumns];
        columns.write(code, scale, all);
        for (std::int64_t i = 0; i < count; ++i) out[i] = all[i];
      }
      code += row_bytes;
      scale += row_bytes;
      out += stride;
    }
  }
};

/// Columns are made of tables, once a call.
template <typename Columns>
inline constexpr UnpackPart kUnpackPieces =
    [](const PackedRow& row, const PackedPart& part, std::uint16_t* out, std::int64_t stride) {
      UnpackPieces<Columns>::run(Columns(), row, part, out, stride);
    };

}  // namespace zi
