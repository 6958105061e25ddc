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
#include "packing/packed_row.h"
#include "packing/unpack_rows.h"
#include "packing/valid_rows.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using CodeKind = WeightFormat::Kind;
using Layout = Quantization::Layout;
using Shape = std::vector<std::int64_t>;

constexpr std::size_t kZerosAtOnce = std::size_t{64} << 10;
/// Rows in a row without scales that look like a hole in a file.
constexpr std::int64_t kRowsOfHole = 16;

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

/// The largest |code - zero|.
float most_of(const WeightFormat& format) {
  if (format.kind == CodeKind::kFloat8) return 448;
  if (format.kind == CodeKind::kInt4) return format.zeros ? 15 : 8;
  return format.zeros ? 255 : 128;
}

/// Gives all groups of a packed row a scale of 1.
void put_scales_of_one(const PackedRow& row, std::byte* bytes) {
  const float one = 1;
  for (std::int64_t group = 0; group < row.groups; ++group) {
    std::byte* const at = bytes + row.scales_at + static_cast<std::size_t>(group) * row.scale_bytes;
    if (row.format.scale == ScaleType::kFloat32) {
      std::memcpy(at, &one, sizeof one);
      continue;
    }
    const std::uint16_t bits =
        row.format.scale == ScaleType::kFloat16 ? float_to_float16(one) : float_to_bfloat16(one);
    std::memcpy(at, &bits, sizeof bits);
  }
}

/// Whether a row has scales of 0 alone, and codes that are not.
bool is_dead(const std::byte* bytes, const PackedRow& row) {
  for (std::int64_t group = 0; group < row.groups; ++group) {
    if (row.scale(bytes, group) != 0) return false;
  }
  std::vector<std::byte> copy(bytes, bytes + row.bytes);
  put_scales_of_one(row, copy.data());
  std::vector<float> values(static_cast<std::size_t>(row.cols));
  unpack_rows(copy.data(), 1, row.cols, row.format, DType::kFloat32, values.data());
  return !std::ranges::all_of(values, [](float value) { return value == 0; });
}

}  // namespace

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
      const bool bytes = parts_.zeros && &part == &*parts_.zeros && part.tensor->dtype == "I8";
      fail(part,
           fmt::format("is stored as {}, and {} of {} are {}{}", in_quotes(part.tensor->dtype),
                       &part == &*parts_.codes ? "codes" : "such tensors", quantization_.method,
                       wanted,
                       bytes ? ": early programs wrote zero points that are not packed; save "
                               "the checkpoint again with a later compressed-tensors"
                             : ""));
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
  if (format_.zeros || is_transposed(layout)) require(parts_.zeros, "zero points");
  if (parts_.zeros && layout != Layout::kFloat8) {
    expect_type(*parts_.zeros, layout == Layout::kInt8 ? "I8" : "I32");
  }
  if (quantization_.ordered) {
    require(parts_.order, "order of its columns, which `desc_act` or `actorder` asks for");
  }
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

/// Of float8: nobody subtracts them.
void QuantizedMatrix::check_no_zeros() const {
  const StoredTensor& zeros = *parts_.zeros->tensor;
  std::vector<std::byte> piece(kZerosAtOnce);
  for (std::uint64_t at = zeros.begin; at < zeros.end; at += piece.size()) {
    piece.resize(std::min<std::uint64_t>(kZerosAtOnce, zeros.end - at));
    parts_.zeros->file->read(at, piece.data(), piece.size());
    if (std::ranges::all_of(piece, [](std::byte byte) { return byte == std::byte{0}; })) continue;
    fail(*parts_.zeros,
         "has a zero point that is not 0: zero points of float8 are not supported; use another "
         "checkpoint");
  }
}

void QuantizedMatrix::check_contents(std::int64_t rows, std::int64_t cols) const {
  if (parts_.zeros && quantization_.layout == Layout::kFloat8) check_no_zeros();
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
  const RowRun rows{PackedRow(format_, cols), all, first, count, out};
  std::memset(out, 0, static_cast<std::size_t>(count) * rows.row.bytes);
  const Layout layout = quantization_.layout;
  read_codes(*parts_.codes, layout, rows);
  read_scales(*parts_.scales, layout, quantization_.group_rows, rows);
  if (parts_.zeros && layout != Layout::kFloat8) {
    read_zeros(*parts_.zeros, layout, rows, [&](std::int64_t row, std::int64_t group, int stored) {
      put_zero(rows, row, group, stored);
    });
  }
  check_numbers(rows);
  check_holes(rows);
}

void QuantizedMatrix::put_zero(const RowRun& rows, std::int64_t row, std::int64_t group,
                               int stored) const {
  const bool int4 = format_.kind == CodeKind::kInt4;
  const int middle = int4 ? static_cast<int>(kInt4Middle) : 128;
  const int zero = stored + quantization_.zero_offset;
  if (!format_.zeros) {
    if (zero == middle) return;
    fail(*parts_.zeros,
         fmt::format("has the zero point {} of row {}, group {}, but `{}` in `quantization_config` "
                     "says that all are {}: one of them belongs to another checkpoint",
                     zero, rows.first + row, group, quantization_.symmetric_key, middle));
  }
  if (zero >= 2 * middle) {
    fail(*parts_.zeros,
         fmt::format("has a zero point of row {}, group {} that is stored as -1, which programs "
                     "read as 0 or as {}; use another checkpoint",
                     rows.first + row, group, zero));
  }
  const int byte = int4 ? zero * static_cast<int>(kZeroPointSteps) : zero - middle;
  rows.at(row)[rows.row.zeros_at + static_cast<std::size_t>(group)] = static_cast<std::byte>(byte);
}

/// Scales and codes of float8 are numbers, and so are their products.
void QuantizedMatrix::check_numbers(const RowRun& rows) const {
  const float most = most_of(format_);
  for (std::int64_t i = 0; i < rows.count; ++i) {
    for (std::int64_t g = 0; g < rows.row.groups; ++g) {
      const float scale = rows.row.scale(rows.at(i), g);
      if (std::isfinite(scale * most)) continue;
      fail(
          *parts_.scales,
          fmt::format("has the scale {} of row {}, group {}{}; the file is damaged: fetch it again",
                      scale, rows.first + i, g,
                      std::isfinite(scale) ? ", with which large codes are no float32" : ""));
    }
  }
  const std::int64_t valid = valid_rows(rows.out, rows.count, rows.row.cols, format_);
  if (valid == rows.count) return;
  const std::byte* const row = rows.at(valid);
  const auto* const code = std::find_if(row, row + rows.row.cols, [](std::byte b) {
    return (std::to_integer<std::uint32_t>(b) & kNoFloat8Code) == kNoFloat8Code;
  });
  fail(*parts_.codes,
       fmt::format("has the code {:#x} of row {}, column {}, which is no number; the "
                   "file is damaged: fetch it again",
                   std::to_integer<unsigned>(*code), rows.first + valid, code - row));
}

/// A scale of 0 over other codes is that of a group, or of a row, so small that its type has no
/// scale for it: the values are 0. A matrix or many rows of them are a hole in the file.
void QuantizedMatrix::check_holes(const RowRun& rows) const {
  const std::int64_t most = std::min(kRowsOfHole, rows.all);
  std::int64_t dead = 0;  // rows up to this one
  for (std::int64_t i = 0; i < rows.count; ++i) {
    dead = is_dead(rows.at(i), rows.row) ? dead + 1 : 0;
    if (dead < most) continue;
    fail(*parts_.scales, fmt::format("has only scales of 0 for rows {} to {}, whose codes are not "
                                     "all zero; the file is damaged: fetch it again",
                                     rows.first + i + 1 - most, rows.first + i));
  }
}

}  // namespace zi
