#include "checkpoint/quantized_matrix.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <utility>

#include "base/printable_text.h"
#include "checkpoint/code_layouts.h"
#include "checkpoint/rectangle.h"
#include "packing/packed_row.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using CodeKind = WeightFormat::Kind;
using Layout = Quantization::Layout;
using Shape = std::vector<std::int64_t>;

constexpr std::size_t kWordBytes = 4;

/// Words, groups and scales run along output rows.
bool is_transposed(Layout layout) { return layout == Layout::kGptq || layout == Layout::kAwq; }

const char* type_of_codes(Layout layout) {
  return layout == Layout::kInt8 ? "I8" : layout == Layout::kFloat8 ? "F8_E4M3" : "I32";
}

std::optional<ScaleType> scale_type_of(const std::string& stored) {
  if (stored == "F32") return ScaleType::kFloat32;
  if (stored == "F16") return ScaleType::kFloat16;
  if (stored == "BF16") return ScaleType::kBFloat16;
  return std::nullopt;
}

std::string text_of(const Shape& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

std::int64_t elements_of(const Shape& shape) {
  std::int64_t n = 1;
  for (const std::int64_t extent : shape) n *= extent;
  return n;
}

}  // namespace

/// `count` rows from `first` on of a matrix of `all` rows.
struct QuantizedMatrix::Rows {
  PackedRow row;
  std::int64_t all;
  std::int64_t first;
  std::int64_t count;
  std::byte* out;

  std::byte* at(std::int64_t i) const { return out + static_cast<std::size_t>(i) * row.bytes; }
};

QuantizedMatrix::QuantizedMatrix(std::string name, const Quantization& quantization,
                                 QuantizedParts parts)
    : name_(std::move(name)),
      quantization_(quantization),
      parts_(std::move(parts)),
      format_(quantization.format) {
  const Layout layout = quantization_.layout;
  if (!parts_.codes) throw Error("a quantized matrix without codes");
  const auto require = [&](const std::optional<TensorInFile>& part, const char* what) {
    if (part) return;
    throw CheckpointError(fmt::format(
        "{}: {} has codes ({}) and no {}; a file is missing, or `quantization_config` of "
        "config.json belongs to another checkpoint",
        parts_.codes->file->path(), in_quotes(name_), in_quotes(parts_.codes->name), what));
  };
  const auto expect_type = [&](const TensorInFile& part, const char* wanted) {
    if (part.tensor->dtype != wanted) {
      fail(part, fmt::format("is stored as {}, and {} of {} are {}", in_quotes(part.tensor->dtype),
                             &part == &*parts_.codes ? "codes" : "such tensors",
                             quantization_.method, wanted));
    }
  };
  expect_type(*parts_.codes, type_of_codes(layout));
  require(parts_.scales, "scales");
  const auto scale = scale_type_of(parts_.scales->tensor->dtype);
  if (!scale) {
    fail(*parts_.scales, fmt::format("holds scales as {}, not F32, F16 or BF16",
                                     in_quotes(parts_.scales->tensor->dtype)));
  }
  format_.scale = *scale;
  if (layout == Layout::kFloat8) {
    parts_.zeros.reset();
  } else if (format_.zeros || is_transposed(layout)) {
    require(parts_.zeros, "zero points");
  } else {
    format_.zeros = parts_.zeros.has_value();
  }
  if (parts_.zeros) expect_type(*parts_.zeros, layout == Layout::kInt8 ? "I8" : "I32");
  if (parts_.order) expect_type(*parts_.order, "I32");
  if (parts_.shape) expect_type(*parts_.shape, "I64");
}

std::vector<TensorInFile> QuantizedMatrix::tensors() const {
  std::vector<TensorInFile> tensors;
  for (const auto* part :
       {&parts_.codes, &parts_.scales, &parts_.zeros, &parts_.order, &parts_.shape}) {
    if (*part) tensors.push_back(**part);
  }
  return tensors;
}

void QuantizedMatrix::fail(const TensorInFile& part, const std::string& what) const {
  throw CheckpointError(
      fmt::format("{}: tensor {} {}", part.file->path(), in_quotes(part.name), what));
}

void QuantizedMatrix::check_shapes(std::int64_t rows, std::int64_t cols) const {
  const Layout layout = quantization_.layout;
  const std::int64_t groups = format_.groups(cols);
  const std::int64_t per =
      layout == Layout::kInt8 || layout == Layout::kFloat8 ? 1 : codes_of_word(format_.kind);
  const auto check = [&](const std::optional<TensorInFile>& part, const Shape& wanted,
                         const std::vector<Shape>& others = {}) {
    if (!part || part->tensor->shape == wanted) return;
    if (std::ranges::find(others, part->tensor->shape) != others.end()) return;
    fail(*part,
         fmt::format("has the shape {}; of a matrix ({}, {}) in {} it is {}: `quantization_config` "
                     "or the sizes in config.json belong to another checkpoint",
                     text_of(part->tensor->shape), rows, cols, describe(format_), text_of(wanted)));
  };
  if (is_transposed(layout)) {
    const bool awq = layout == Layout::kAwq;
    if (rows % per != 0 || cols % (awq ? 1 : per) != 0) {
      fail(*parts_.codes, fmt::format("cannot hold a matrix ({}, {}): there are {} codes in a word",
                                      rows, cols, per));
    }
    check(parts_.codes, awq ? Shape{cols, rows / per} : Shape{cols / per, rows});
    check(parts_.scales, {groups, rows});
    check(parts_.zeros, {groups, rows / per});
  } else {
    const std::int64_t scale_rows = ceil_div(rows, quantization_.group_rows);
    std::vector<Shape> others;  // scales of rows, or one of all
    if (format_.group == 0) others = {{rows}, {1}, {}, {1, 1}};
    check(parts_.codes, {rows, ceil_div(cols, per)});
    check(parts_.scales, {scale_rows, groups}, others);
    if (layout == Layout::kInt8) check(parts_.zeros, {rows, groups}, others);
    if (layout == Layout::kPacked) check(parts_.zeros, {ceil_div(rows, per), groups});
  }
  check(parts_.order, {cols});
  check(parts_.shape, {2});
}

void QuantizedMatrix::check_contents(std::int64_t rows, std::int64_t cols) const {
  if (parts_.shape) {
    Shape stored(2);
    parts_.shape->file->read(parts_.shape->tensor->begin, stored.data(), 2 * sizeof(stored[0]));
    if (stored != Shape{rows, cols}) {
      fail(*parts_.shape, fmt::format("says that the matrix is {}, config.json asks for [{}, {}]",
                                      text_of(stored), rows, cols));
    }
  }
  if (parts_.order) {
    std::vector<std::int32_t> groups(static_cast<std::size_t>(cols));
    parts_.order->file->read(parts_.order->tensor->begin, groups.data(),
                             groups.size() * sizeof(groups[0]));
    for (std::int64_t column = 0; column < cols; ++column) {
      const std::int64_t group = format_.group == 0 ? 0 : column / format_.group;
      const std::int32_t stored = groups[static_cast<std::size_t>(column)];
      if (stored == group) continue;
      fail(*parts_.order,
           fmt::format("puts column {} into group {} and not {}: columns in another order "
                       "(`desc_act`, `actorder`) are not supported; use a checkpoint without",
                       column, stored, group));
    }
  }
}

void QuantizedMatrix::read(const TensorSpec& tensor, std::int64_t first, std::int64_t count,
                           std::byte* out) const {
  const std::int64_t all = tensor.shape.front();
  const std::int64_t cols = tensor.shape.back();
  check_shapes(all, cols);
  if (count == 0) return;
  if (!contents_checked_.load(std::memory_order_relaxed)) {
    check_contents(all, cols);
    contents_checked_.store(true, std::memory_order_relaxed);
  }
  const Rows rows{PackedRow(format_, cols), all, first, count, out};
  std::memset(out, 0, static_cast<std::size_t>(count) * rows.row.bytes);
  read_codes(rows);
  read_scales(rows);
  if (parts_.zeros) read_zeros(rows);
  check_scales(rows);
}

void QuantizedMatrix::read_codes(const Rows& rows) const {
  const TensorInFile& codes = *parts_.codes;
  const std::size_t row_bytes = rows.row.bytes;
  const CodeKind kind = format_.kind;
  const std::int64_t per = codes_of_word(kind);
  const auto words_of = [](const std::byte* data, std::size_t pitch, std::int64_t lines,
                           std::size_t bytes) {
    return WordRectangle{data, pitch, lines, static_cast<std::int64_t>(bytes / kWordBytes)};
  };
  Rectangle in;
  switch (quantization_.layout) {
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

void QuantizedMatrix::read_scales(const Rows& rows) const {
  const std::size_t scale = rows.row.scale_bytes;
  if (is_transposed(quantization_.layout)) {
    const Rectangle in{static_cast<std::size_t>(rows.all) * scale, 0, rows.row.groups,
                       static_cast<std::size_t>(rows.first) * scale,
                       static_cast<std::size_t>(rows.count) * scale};
    read_rectangle(
        *parts_.scales, in, 1,
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
  const bool one = rows.all > 1 && elements_of(parts_.scales->tensor->shape) == 1;
  const std::int64_t share = one ? rows.all : quantization_.group_rows;
  const std::size_t bytes = static_cast<std::size_t>(rows.row.groups) * scale;
  const std::int64_t from = rows.first / share;
  const Rectangle in{bytes, from, ceil_div(rows.first + rows.count, share) - from, 0, bytes};
  read_rectangle(*parts_.scales, in, 1,
                 [&](std::int64_t s, std::int64_t n, const std::byte* data, std::size_t pitch) {
                   for (std::int64_t line = 0; line < n; ++line, data += pitch) {
                     const std::int64_t begin = std::max(rows.first, (from + s + line) * share);
                     const std::int64_t end =
                         std::min(rows.first + rows.count, (from + s + line + 1) * share);
                     for (std::int64_t row = begin; row < end; ++row) {
                       std::memcpy(rows.at(row - rows.first) + rows.row.scales_at, data, bytes);
                     }
                   }
                 });
}

void QuantizedMatrix::put_zero(const Rows& rows, std::int64_t row, std::int64_t group,
                               int stored) const {
  const bool int4 = format_.kind == CodeKind::kInt4;
  const int middle = int4 ? static_cast<int>(kInt4Middle) : 128;
  const int zero = stored + quantization_.zero_offset;
  if (!format_.zeros) {
    if (zero == middle) return;
    fail(*parts_.zeros,
         fmt::format("has the zero point {} of row {}, group {}, but `quantization_config.sym` "
                     "says that all are {}: one of them belongs to another checkpoint",
                     zero, rows.first + row, group, middle));
  }
  const int byte = int4 ? zero * static_cast<int>(kZeroPointSteps) : zero - middle;
  if (byte > (int4 ? 255 : 127)) {
    fail(*parts_.zeros, fmt::format("has the zero point {} of row {}, group {}: no code is as "
                                    "large; use another checkpoint",
                                    zero, rows.first + row, group));
  }
  rows.at(row)[rows.row.zeros_at + static_cast<std::size_t>(group)] = static_cast<std::byte>(byte);
}

void QuantizedMatrix::read_zeros(const Rows& rows) const {
  const std::int64_t per = codes_of_word(format_.kind);
  const int bits = format_.kind == CodeKind::kInt4 ? 4 : 8;
  const auto code_of = [&](const std::byte* words, std::int64_t word, std::int64_t code) {
    std::uint32_t value;
    std::memcpy(&value, words + static_cast<std::size_t>(word) * kWordBytes, sizeof value);
    return static_cast<int>(value >> (bits * static_cast<int>(code)) & ((1u << bits) - 1));
  };
  const std::int64_t first_word = rows.first / per;
  const std::int64_t words = ceil_div(rows.first + rows.count, per) - first_word;
  const auto groups = static_cast<std::size_t>(rows.row.groups);
  if (is_transposed(quantization_.layout)) {
    const bool awq = quantization_.layout == Layout::kAwq;
    const Rectangle in{static_cast<std::size_t>(rows.all / per) * kWordBytes, 0, rows.row.groups,
                       static_cast<std::size_t>(first_word) * kWordBytes,
                       static_cast<std::size_t>(words) * kWordBytes};
    read_rectangle(*parts_.zeros, in, 1,
                   [&](std::int64_t g, std::int64_t n, const std::byte* data, std::size_t pitch) {
                     for (std::int64_t line = 0; line < n; ++line, data += pitch) {
                       for (std::int64_t i = 0; i < rows.count; ++i) {
                         const std::int64_t place = (rows.first + i) % per;
                         put_zero(rows, i, g + line,
                                  code_of(data, (rows.first + i) / per - first_word,
                                          awq ? kAwqPlaces[place] : place));
                       }
                     }
                   });
  } else if (quantization_.layout == Layout::kPacked) {
    const Rectangle in{groups * kWordBytes, first_word, words, 0, groups * kWordBytes};
    read_rectangle(*parts_.zeros, in, 1,
                   [&](std::int64_t w, std::int64_t n, const std::byte* data, std::size_t pitch) {
                     for (std::int64_t line = 0; line < n; ++line, data += pitch) {
                       const std::int64_t begin =
                           std::max(rows.first, (first_word + w + line) * per);
                       const std::int64_t end =
                           std::min(rows.first + rows.count, (first_word + w + line + 1) * per);
                       for (std::int64_t row = begin; row < end; ++row) {
                         for (std::int64_t g = 0; g < rows.row.groups; ++g) {
                           put_zero(rows, row - rows.first, g, code_of(data, g, row % per));
                         }
                       }
                     }
                   });
  } else {  // a byte each, or one of all
    const bool one = elements_of(parts_.zeros->tensor->shape) == 1;
    const Rectangle in{groups, one ? 0 : rows.first, one ? 1 : rows.count, 0, groups};
    read_rectangle(*parts_.zeros, in, 1,
                   [&](std::int64_t r, std::int64_t n, const std::byte* data, std::size_t pitch) {
                     for (std::int64_t row = 0; row < (one ? rows.count : n); ++row) {
                       std::memcpy(rows.at(r + row) + rows.row.zeros_at,
                                   data + (one ? 0 : static_cast<std::size_t>(row) * pitch),
                                   groups);
                     }
                   });
  }
}

namespace {

/// Whether all codes of a group are its zero point.
bool is_all_zero(const std::byte* bytes, const PackedRow& row, std::int64_t group) {
  const float zero = row.zero(bytes, group);
  const std::int64_t end = std::min(row.cols, (group + 1) * row.group);
  for (std::int64_t c = group * row.group; c < end; ++c) {
    float code = 0;
    if (row.format.kind == CodeKind::kInt4) {
      std::uint32_t word;
      std::memcpy(&word, bytes + c / 8 * 4, sizeof word);
      code = static_cast<float>(word >> (c % 8 / 2 * 4 + c % 2 * 16) & 15u);
    } else {
      const auto byte = std::to_integer<std::uint8_t>(bytes[c]);
      code = row.format.kind == CodeKind::kFloat8
                 ? e4m3_to_float(byte)
                 : static_cast<float>(static_cast<std::int8_t>(byte));
    }
    if (code != zero) return false;
  }
  return true;
}

}  // namespace

/// A scale of 0 makes nothing of its codes: a file with holes has such.
void QuantizedMatrix::check_scales(const Rows& rows) const {
  for (std::int64_t i = 0; i < rows.count; ++i) {
    for (std::int64_t g = 0; g < rows.row.groups; ++g) {
      const float scale = rows.row.scale(rows.at(i), g);
      if (std::isfinite(scale) && (scale != 0 || is_all_zero(rows.at(i), rows.row, g))) continue;
      fail(*parts_.scales,
           fmt::format(
               "has the scale {} of row {}, group {}{}; the file is damaged: fetch it again", scale,
               rows.first + i, g, scale == 0 ? ", whose codes are not all zero" : ""));
    }
  }
}

}  // namespace zi
