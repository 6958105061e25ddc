#pragma once

#include "packing/unpack_simd.h"

namespace zi {

/// Codes and scales of a part's rows, 32 columns at a time, by `Columns` (of one instruction set: a
/// type of its own in an anonymous namespace, so that each set has code of its own). A row has
/// bytes beyond its last block of codes, which may be read: its scales.
template <typename Columns>
void unpack_pieces(const PackedRow& row, const PackedPart& part, std::uint16_t* out,
                   std::int64_t stride) {
  constexpr std::int64_t kColumns = 32;
  constexpr std::int64_t kPiece = 128;  // a line of codes of int4, two of int8
  constexpr std::int64_t kLineBytes = 64;
  const Columns columns;
  const std::int64_t block = part.first / kColumns;
  const std::byte* codes = part.packed + block * Columns::kCodeBytes;
  const std::byte* scales =
      part.packed + static_cast<std::int64_t>(row.scales_at) + block * Columns::kScales;
  for (std::int64_t r = 0; r < part.rows; ++r) {
    const std::byte* code = codes;
    const std::byte* scale = scales;
    std::int64_t c = 0;
    for (; c + kPiece <= part.columns; c += kPiece) {
      if (part.codes_ahead != 0) {
        for (std::int64_t line = 0; line < kPiece / kColumns * Columns::kCodeBytes;
             line += kLineBytes) {
          __builtin_prefetch(code + part.codes_ahead + line, 0, 3);
        }
      }
      if (part.scales_ahead != 0) __builtin_prefetch(scale + part.scales_ahead, 0, 3);
      for (std::int64_t i = 0; i < kPiece; i += kColumns) {
        columns.write(code, scale, out + c + i);
        code += Columns::kCodeBytes;
        scale += Columns::kScales;
      }
    }
    for (; c < part.columns; c += kColumns) {
      const std::int64_t count = part.columns - c;
      if (count >= kColumns) {
        columns.write(code, scale, out + c);
      } else {
        alignas(64) std::uint16_t all[kColumns];
        columns.write(code, scale, all);
        for (std::int64_t i = 0; i < count; ++i) out[c + i] = all[i];
      }
      code += Columns::kCodeBytes;
      scale += Columns::kScales;
    }
    codes += row.bytes;
    scales += row.bytes;
    out += stride;
  }
}

}  // namespace zi
