#include "zero_infer/partition_layout.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// Sizes up to here may be added and multiplied by a world size without a look at overflow.
constexpr std::int64_t kMostElements = std::numeric_limits<std::int64_t>::max() >> 16;

void check_matrix(const TensorSpec& tensor) {
  const bool usable = tensor.shape.size() == 2 && tensor.shape[0] > 0 && tensor.shape[1] > 0 &&
                      tensor.shape[0] <= kMostElements / tensor.shape[1];
  if (usable) return;
  throw CheckpointError(fmt::format(
      "tensor `{}` has the shape [{}]; only a matrix (out, in) with at least one row and "
      "one column can be cut over ranks: check the sizes in config.json",
      tensor.name, fmt::join(tensor.shape, ", ")));
}

}  // namespace

Matrices::Matrices(std::span<const RowBlockMatrix> matrices) : size_(matrices.size()) {
  if (size_ == 0 || size_ > kMost) {
    throw Error(fmt::format("{} matrices side by side: 1 to {} are multiplied", size_, kMost));
  }
  for (std::size_t i = 0; i < size_; ++i) {
    matrices_[i] = matrices[i];
    if (matrices[i].cols != cols() || matrices[i].format != format()) {
      throw Error("matrices side by side have the same columns and format");
    }
  }
}

std::int64_t Matrices::first(std::size_t i) const {
  std::int64_t columns = 0;
  for (std::size_t before = 0; before < i; ++before) columns += matrices_[before].padded_rows();
  return columns;
}

PartitionLayout::PartitionLayout(const UnitSpec& unit, const MatrixFormats& formats, int world)
    : world_(world) {
  if (world < 1) {
    throw ConfigError(
        fmt::format("`{}` cannot be cut over {} ranks; use at least 1", unit.name, world));
  }
  std::size_t end = 0;
  for (const TensorSpec& tensor : unit.matrices) {
    check_matrix(tensor);
    Matrix matrix;
    matrix.tensor = tensor;
    matrix.format = formats.of(tensor.name);
    matrix.rows_per_rank = ceil_div(tensor.shape[0], world);
    matrix.offset = align_up(end, kMatrixAlignment);
    matrix.bytes =
        static_cast<std::size_t>(matrix.rows_per_rank) * matrix.format.row_bytes(tensor.shape[1]);
    end = matrix.offset + matrix.bytes;
    matrices_.push_back(std::move(matrix));
  }
  shard_bytes_ = align_up(end, kPageBytes);
}

PartitionLayout::RowRange PartitionLayout::rows_of(std::size_t matrix, int rank) const {
  const Matrix& m = matrices_.at(matrix);
  const std::int64_t rows = m.tensor.shape[0];
  const std::int64_t first = std::min(rows, rank * m.rows_per_rank);
  return {first, std::min(m.rows_per_rank, rows - first)};
}

std::int64_t PartitionLayout::host_rows(std::size_t matrix, double share) const {
  const std::int64_t rows = matrices_.at(matrix).rows_per_rank;
  const double kept = (1 - std::clamp(share, 0.0, 1.0)) * static_cast<double>(rows) / kSplitRows;
  return rows - std::min(rows, static_cast<std::int64_t>(std::ceil(kept)) * kSplitRows);
}

RowBlockMatrix PartitionLayout::gathered(std::size_t matrix, const std::byte* slot) const {
  const Matrix& m = matrices_.at(matrix);
  return {.data = slot + m.offset,
          .rows = m.tensor.shape[0],
          .cols = m.tensor.shape[1],
          .blocks = world_,
          .rows_per_block = m.rows_per_rank,
          .block_stride_bytes = shard_bytes_,
          .format = m.format};
}

RowBlockMatrix PartitionLayout::own(std::size_t matrix, const std::byte* shard, int rank) const {
  const Matrix& m = matrices_.at(matrix);
  return {.data = shard + m.offset,
          .rows = rows_of(matrix, rank).count,
          .cols = m.tensor.shape[1],
          .blocks = 1,
          .rows_per_block = m.rows_per_rank,
          .block_stride_bytes = shard_bytes_,
          .format = m.format};
}

}  // namespace zi
