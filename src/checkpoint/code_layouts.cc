#include "checkpoint/code_layouts.h"

#include <algorithm>
#include <cstring>

namespace zi {
namespace {

std::uint32_t load_word(const std::byte* at) {
  std::uint32_t word;
  std::memcpy(&word, at, sizeof word);
  return word;
}

void store_word(std::byte* at, std::uint32_t word) { std::memcpy(at, &word, sizeof word); }

/// Swaps the upper halves of the fields of `a` with the lower halves of those of `b`.
void swap_halves(std::uint32_t& a, std::uint32_t& b, int bits, std::uint32_t lower) {
  const std::uint32_t both = ((a >> bits) ^ b) & lower;
  b ^= both;
  a ^= both << bits;
}

/// Code j of word i becomes code i of word j.
void transpose_codes(std::uint32_t (&words)[8]) {
  for (int i = 0; i < 4; ++i) swap_halves(words[i], words[i + 4], 16, 0x0000ffffu);
  for (int i = 0; i < 8; ++i) {
    if (i % 4 < 2) swap_halves(words[i], words[i + 2], 8, 0x00ff00ffu);
  }
  for (int i = 0; i < 8; i += 2) swap_halves(words[i], words[i + 1], 4, 0x0f0f0f0fu);
}

/// Output rows whose words are turned at once: a line of the cache of each row of words.
constexpr std::int64_t kRowsAtOnce = 16;

template <WeightFormat::Kind kKind>
void turn_words(const WordRectangle& in, std::int64_t first, std::byte* rows,
                std::size_t row_bytes) {
  for (std::int64_t o = 0; o < in.words; o += kRowsAtOnce) {
    const std::int64_t last = std::min(in.words, o + kRowsAtOnce);
    const std::byte* from = in.data;
    for (std::int64_t k = 0; k < in.rows; ++k, from += in.pitch) {
      std::byte* const column = rows + static_cast<std::size_t>(first + k) * 4;
      for (std::int64_t row = o; row < last; ++row) {
        store_word(column + static_cast<std::size_t>(row) * row_bytes,
                   row_word(load_word(from + row * 4), kKind));
      }
    }
  }
}

/// The bits of a row's last word that are of columns.
std::uint32_t mask_of(std::int64_t cols, WeightFormat::Kind kind) {
  const auto used = static_cast<int>(cols % codes_of_word(kind));
  const int bits = kind == WeightFormat::Kind::kInt4 ? 4 : 8;
  return used == 0 ? ~0u : (1u << (bits * used)) - 1;
}

template <WeightFormat::Kind kKind>
void copy_words(const WordRectangle& in, std::int64_t cols, std::byte* rows,
                std::size_t row_bytes) {
  // As they stand in the words of rows, the codes of columns alone.
  const std::uint32_t last = row_word(mask_of(cols, kKind) ^ row_word(0, kKind), kKind);
  for (std::int64_t o = 0; o < in.rows; ++o, rows += row_bytes) {
    const std::byte* const from = in.data + static_cast<std::size_t>(o) * in.pitch;
    for (std::int64_t k = 0; k < in.words; ++k) {
      const std::uint32_t word = row_word(load_word(from + k * 4), kKind);
      store_word(rows + k * 4, k + 1 == in.words ? word & last : word);
    }
  }
}

}  // namespace

void place_gptq_codes(const WordRectangle& in, std::int64_t first, WeightFormat::Kind kind,
                      std::byte* rows, std::size_t row_bytes) {
  if (kind == WeightFormat::Kind::kInt4) {
    turn_words<WeightFormat::Kind::kInt4>(in, first, rows, row_bytes);
  } else {
    turn_words<WeightFormat::Kind::kInt8>(in, first, rows, row_bytes);
  }
}

void place_awq_codes(const WordRectangle& in, std::int64_t first, std::int64_t skipped,
                     std::int64_t count, std::byte* rows, std::size_t row_bytes) {
  for (std::int64_t i = 0; i < in.words; ++i) {
    for (std::int64_t k = 0; k < in.rows; k += 8) {
      std::uint32_t words[8] = {};
      for (std::int64_t column = 0; column < std::min<std::int64_t>(8, in.rows - k); ++column) {
        words[column] =
            load_word(in.data + static_cast<std::size_t>(k + column) * in.pitch + i * 4);
      }
      transpose_codes(words);
      for (std::int64_t j = 0; j < 8; ++j) {
        const std::int64_t row = 8 * i + j - skipped;
        if (row < 0 || row >= count) continue;
        store_word(rows + static_cast<std::size_t>(row) * row_bytes + (first + k) / 2,
                   row_word(words[kAwqPlaces[j]], WeightFormat::Kind::kInt4));
      }
    }
  }
}

void place_packed_codes(const WordRectangle& in, std::int64_t cols, WeightFormat::Kind kind,
                        std::byte* rows, std::size_t row_bytes) {
  if (kind == WeightFormat::Kind::kInt4) {
    copy_words<WeightFormat::Kind::kInt4>(in, cols, rows, row_bytes);
  } else {
    copy_words<WeightFormat::Kind::kInt8>(in, cols, rows, row_bytes);
  }
}

}  // namespace zi
