#include "backend/cpu/products/weight_reader.h"

#include <algorithm>
#include <cstring>

#include "zero_infer/bytes.h"

namespace zi {
namespace {

WeightReader::Packing packing_of(const WeightFormat& format) {
  if (format == kInt8Weights) return WeightReader::Packing::kInt8;
  if (format == kInt4Weights) return WeightReader::Packing::kInt4;
  switch (format.kind) {
    case WeightFormat::Kind::kInt8:
      return WeightReader::Packing::kOtherInt8;
    case WeightFormat::Kind::kInt4:
      return WeightReader::Packing::kOtherInt4;
    case WeightFormat::Kind::kFloat8:
      return WeightReader::Packing::kOtherFloat8;
    case WeightFormat::Kind::kElements:
      break;
  }
  return WeightReader::Packing::kNone;
}

}  // namespace

WeightReader::WeightReader(const RowBlockMatrix& w, DType type, InstructionSet set)
    : cols(w.cols),
      padded_cols(ceil_div(w.cols, kBlockColumns) * kBlockColumns),
      row_bytes(static_cast<std::int64_t>(w.row_bytes())),
      piece_columns(w.format.packed() && w.format.kind != WeightFormat::Kind::kInt4
                        ? kInt8PieceColumns
                        : kInt4PieceColumns),
      piece_bytes(row_bytes * piece_columns / std::max(w.cols, piece_columns)),
      in_place(!w.format.packed() && w.cols % kBlockColumns == 0),
      packing(packing_of(w.format)) {
  if (!w.format.packed()) return;
  packed_row = &packed_.emplace(w.format, w.cols);
  unpack_ = unpack_part(w.format, set, type);
}

void WeightReader::read(const PackedPart& part, std::int64_t height, std::uint16_t* out,
                        std::int64_t stride) const {
  constexpr std::size_t kElement = sizeof(std::uint16_t);
  if (packed_) {
    unpack_(*packed_, part, out, stride);
  } else {
    const std::byte* row = part.packed + part.first * static_cast<std::int64_t>(kElement);
    for (std::int64_t r = 0; r < part.rows; ++r, row += row_bytes) {
      std::memcpy(out + r * stride, row, static_cast<std::size_t>(part.columns) * kElement);
    }
  }
  const std::int64_t padded = ceil_div(part.columns, kBlockColumns) * kBlockColumns;
  if (padded > part.columns) {
    const auto bytes = static_cast<std::size_t>(padded - part.columns) * kElement;
    for (std::int64_t r = 0; r < part.rows; ++r) {
      std::memset(out + r * stride + part.columns, 0, bytes);
    }
  }
  for (std::int64_t r = part.rows; r < height; ++r) {
    std::memset(out + r * stride, 0, static_cast<std::size_t>(padded) * kElement);
  }
}

}  // namespace zi
