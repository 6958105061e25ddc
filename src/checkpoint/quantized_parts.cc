#include "checkpoint/quantized_parts.h"

#include <algorithm>
#include <cstring>

#include "checkpoint/code_layouts.h"
#include "checkpoint/rectangle.h"
#include "zero_infer/bytes.h"

namespace zi {
namespace {

using CodeKind = WeightFormat::Kind;
using Layout = Quantization::Layout;

constexpr std::size_t kWordBytes = 4;

/// Whether a tensor has one element for the whole matrix.
bool is_one(const TensorInFile& tensor) {
  return std::ranges::all_of(tensor.tensor->shape, [](std::int64_t extent) { return extent == 1; });
}

}  // namespace

void read_codes(const TensorInFile& codes, Layout layout, const RowRun& rows) {
  const std::size_t row_bytes = rows.row.bytes;
  const CodeKind kind = rows.row.format.kind;
  const std::int64_t per = codes_of_word(kind);
  const auto words_of = [](const std::byte* data, std::size_t pitch, std::int64_t lines,
                           std::size_t bytes) {
    return WordRectangle{data, pitch, lines, static_cast<std::int64_t>(bytes / kWordBytes)};
  };
  Rectangle in;
  switch (layout) {
    case Layout::kNone:
      break;
    case Layout::kGptq:
      in = {static_cast<std::size_t>(rows.all) * kWordBytes, 0, rows.row.cols / per,
            static_cast<std::size_t>(rows.first) * kWordBytes,
            static_cast<std::size_t>(rows.count) * kWordBytes};
      read_rectangle(codes, in, 1,
                     [&](std::int64_t k, std::int64_t n, const std::byte* data, std::size_t pitch) {
                       place_gptq_codes(words_of(data, pitch, n, in.bytes), k, kind, rows.out,
                                        row_bytes);
                     });
      break;
    case Layout::kAwq: {
      const std::int64_t word = rows.first / per;
      const std::int64_t words = ceil_div(rows.first + rows.count, per) - word;
      in = {static_cast<std::size_t>(rows.all / per) * kWordBytes, 0, rows.row.cols,
            static_cast<std::size_t>(word) * kWordBytes,
            static_cast<std::size_t>(words) * kWordBytes};
      read_rectangle(codes, in, per,
                     [&](std::int64_t k, std::int64_t n, const std::byte* data, std::size_t pitch) {
                       place_awq_codes(words_of(data, pitch, n, in.bytes), k, rows.first % per,
                                       rows.count, rows.out, row_bytes);
                     });
      break;
    }
    case Layout::kPacked:
      in.bytes = static_cast<std::size_t>(ceil_div(rows.row.cols, per)) * kWordBytes;
      in = {in.bytes, rows.first, rows.count, 0, in.bytes};
      read_rectangle(codes, in, 1,
                     [&](std::int64_t i, std::int64_t n, const std::byte* data, std::size_t pitch) {
                       place_packed_codes(words_of(data, pitch, n, in.bytes), rows.row.cols, kind,
                                          rows.at(i), row_bytes);
                     });
      break;
    case Layout::kInt8:
    case Layout::kFloat8:
      in.bytes = static_cast<std::size_t>(rows.row.cols);
      in = {in.bytes, rows.first, rows.count, 0, in.bytes};
      read_rectangle(codes, in, 1,
                     [&](std::int64_t i, std::int64_t n, const std::byte* data, std::size_t pitch) {
                       for (std::int64_t line = 0; line < n; ++line, data += pitch) {
                         std::memcpy(rows.at(i + line), data, in.bytes);
                       }
                     });
      break;
  }
}

void read_scales(const TensorInFile& scales, Layout layout, std::int64_t group_rows,
                 const RowRun& rows) {
  const std::size_t scale = rows.row.scale_bytes;
  if (is_transposed(layout)) {
    const Rectangle in{static_cast<std::size_t>(rows.all) * scale, 0, rows.row.groups,
                       static_cast<std::size_t>(rows.first) * scale,
                       static_cast<std::size_t>(rows.count) * scale};
    read_rectangle(
        scales, in, 1,
        [&](std::int64_t g, std::int64_t n, const std::byte* data, std::size_t pitch) {
          for (std::int64_t line = 0; line < n; ++line, data += pitch) {
            const std::size_t at = rows.row.scales_at + static_cast<std::size_t>(g + line) * scale;
            for (std::int64_t i = 0; i < rows.count; ++i) {
              std::memcpy(rows.at(i) + at, data + static_cast<std::size_t>(i) * scale, scale);
            }
          }
        });
    return;
  }
  // Each row of scales is that of `share` rows of codes.
  const bool one = rows.all > 1 && is_one(scales);
  const std::int64_t share = one ? rows.all : group_rows;
  const std::size_t bytes = static_cast<std::size_t>(rows.row.groups) * scale;
  const std::int64_t from = rows.first / share;
  const Rectangle in{bytes, from, ceil_div(rows.first + rows.count, share) - from, 0, bytes};
  read_rectangle(
      scales, in, 1, [&](std::int64_t s, std::int64_t n, const std::byte* data, std::size_t pitch) {
        for (std::int64_t line = 0; line < n; ++line, data += pitch) {
          const std::int64_t begin = std::max(rows.first, (from + s + line) * share);
          const std::int64_t end = std::min(rows.first + rows.count, (from + s + line + 1) * share);
          for (std::int64_t row = begin; row < end; ++row) {
            std::memcpy(rows.at(row - rows.first) + rows.row.scales_at, data, bytes);
          }
        }
      });
}

void read_zeros(const TensorInFile& zeros, Layout layout, const RowRun& rows,
                const TakeZero& take) {
  const std::int64_t per = codes_of_word(rows.row.format.kind);
  const int bits = rows.row.format.kind == CodeKind::kInt4 ? 4 : 8;
  const auto code_of = [&](const std::byte* words, std::int64_t word, std::int64_t code) {
    std::uint32_t value;
    std::memcpy(&value, words + static_cast<std::size_t>(word) * kWordBytes, sizeof value);
    return static_cast<int>(value >> (bits * static_cast<int>(code)) & ((1u << bits) - 1));
  };
  const std::int64_t first_word = rows.first / per;
  const std::int64_t words = ceil_div(rows.first + rows.count, per) - first_word;
  const auto groups = static_cast<std::size_t>(rows.row.groups);
  if (is_transposed(layout)) {
    const bool awq = layout == Layout::kAwq;
    const Rectangle in{static_cast<std::size_t>(rows.all / per) * kWordBytes, 0, rows.row.groups,
                       static_cast<std::size_t>(first_word) * kWordBytes,
                       static_cast<std::size_t>(words) * kWordBytes};
    read_rectangle(zeros, in, 1,
                   [&](std::int64_t g, std::int64_t n, const std::byte* data, std::size_t pitch) {
                     for (std::int64_t line = 0; line < n; ++line, data += pitch) {
                       for (std::int64_t i = 0; i < rows.count; ++i) {
                         const std::int64_t place = (rows.first + i) % per;
                         take(i, g + line,
                              code_of(data, (rows.first + i) / per - first_word,
                                      awq ? kAwqPlaces[place] : place));
                       }
                     }
                   });
  } else if (layout == Layout::kPacked) {
    const Rectangle in{groups * kWordBytes, first_word, words, 0, groups * kWordBytes};
    read_rectangle(zeros, in, 1,
                   [&](std::int64_t w, std::int64_t n, const std::byte* data, std::size_t pitch) {
                     for (std::int64_t line = 0; line < n; ++line, data += pitch) {
                       const std::int64_t begin =
                           std::max(rows.first, (first_word + w + line) * per);
                       const std::int64_t end =
                           std::min(rows.first + rows.count, (first_word + w + line + 1) * per);
                       for (std::int64_t row = begin; row < end; ++row) {
                         for (std::int64_t g = 0; g < rows.row.groups; ++g) {
                           take(row - rows.first, g, code_of(data, g, row % per));
                         }
                       }
                     }
                   });
  } else {  // a byte each, or one of all
    const bool one = is_one(zeros);
    const Rectangle in{groups, one ? 0 : rows.first, one ? 1 : rows.count, 0, groups};
    read_rectangle(zeros, in, 1,
                   [&](std::int64_t r, std::int64_t n, const std::byte* data, std::size_t pitch) {
                     for (std::int64_t row = 0; row < (one ? rows.count : n); ++row) {
                       const std::byte* const line =
                           data + (one ? 0 : static_cast<std::size_t>(row) * pitch);
                       for (std::int64_t g = 0; g < rows.row.groups; ++g) {
                         const auto byte = std::to_integer<std::uint8_t>(line[g]);
                         take(r + row, g, static_cast<std::int8_t>(byte) + 128);
                       }
                     }
                   });
  }
}

}  // namespace zi
