#pragma once

#include <cstddef>
#include <cstdint>

#include "zero_infer/weight_format.h"

namespace zi {

/// Codes of other programs, which stand in little-endian words of 32 bits, as they stand in packed
/// rows (zero_infer/weight_format.h). Eight codes of 4 bits or four of 8 make a word, the first in
/// its lowest bits; codes of 8 bits are unsigned in words and signed in rows. Places of rows are
/// where row 0 of those that are written begins; nothing but codes is written.

/// Codes in a word.
constexpr std::int64_t codes_of_word(WeightFormat::Kind kind) {
  return kind == WeightFormat::Kind::kInt4 ? 8 : 4;
}

/// The codes of a word as they stand in the same word of a row.
constexpr std::uint32_t row_word(std::uint32_t word, WeightFormat::Kind kind) {
  if (kind != WeightFormat::Kind::kInt4) return word ^ 0x80808080u;
  const auto every_second = [](std::uint32_t v) {
    v &= 0x0f0f0f0fu;
    v = (v | v >> 4) & 0x00ff00ffu;
    return (v | v >> 8) & 0xffffu;
  };
  return every_second(word) | every_second(word >> 4) << 16;
}

/// Which of the eight codes of an AWQ word is that of output row 8 i + j.
inline constexpr int kAwqPlaces[8] = {0, 4, 1, 5, 2, 6, 3, 7};

/// Memory of a rectangle of words: (rows, words), the rows `pitch` bytes apart.
struct WordRectangle {
  const std::byte* data;
  std::size_t pitch;
  std::int64_t rows;
  std::int64_t words;
};

/// GPTQ: word (k, o) has the codes of columns 8 k .. (or 4 k ..) of output row o. `first` is the k
/// of the rectangle's first row.
void place_gptq_codes(const WordRectangle& in, std::int64_t first, WeightFormat::Kind kind,
                      std::byte* rows, std::size_t row_bytes);

/// AWQ: word (k, i) has the codes of column k of output rows 8 i .. 8 i + 7, in the order of
/// kAwqPlaces. `first` is the k of the rectangle's first row, a multiple of 8; `skipped` output
/// rows of the first word come before row 0, and `count` are written.
void place_awq_codes(const WordRectangle& in, std::int64_t first, std::int64_t skipped,
                     std::int64_t count, std::byte* rows, std::size_t row_bytes);

/// compressed-tensors: word (o, k) has the codes of columns 8 k .. (or 4 k ..) of output row o.
/// What a last word holds beyond `cols` becomes zero bits.
void place_packed_codes(const WordRectangle& in, std::int64_t cols, WeightFormat::Kind kind,
                        std::byte* rows, std::size_t row_bytes);

}  // namespace zi
