#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "zero_infer/model_spec.h"
#include "zero_infer/weight_format.h"

namespace zi {

/// The formats of matrices: one, and by their names those of the matrices that have another.
struct MatrixFormats {
  WeightFormat usual;
  std::map<std::string, WeightFormat> others;

  MatrixFormats(const WeightFormat& all = {}) : usual(all) {}
  MatrixFormats(DType all) : usual(all) {}
  MatrixFormats(const WeightFormat& most, std::map<std::string, WeightFormat> rest)
      : usual(most), others(std::move(rest)) {}

  const WeightFormat& of(const std::string& matrix) const {
    const auto other = others.find(matrix);
    return other == others.end() ? usual : other->second;
  }
};

/// A matrix as the ops see it: `blocks` row blocks at a fixed stride. A gathered matrix has one
/// block per rank, a shard has one in all. Rows at and beyond `rows` are zero padding (only in the
/// last blocks).
struct RowBlockMatrix {
  const std::byte* data = nullptr;  // row 0 of block 0
  std::int64_t rows = 0;            // of the whole matrix, without padding
  std::int64_t cols = 0;
  int blocks = 1;
  std::int64_t rows_per_block = 0;
  std::size_t block_stride_bytes = 0;
  WeightFormat format;
  /// The block that is here, at `data`, while the others are on other ranks; -1: all are here. Ops
  /// take such a matrix only where they say so.
  int only_block = -1;
  /// A matrix that is split: of its only block, or that which is here, the last `host_rows` rows
  /// are at `host`, in host memory, and at `data` are those before them alone. Ops take such a
  /// matrix only where they say so.
  std::int64_t host_rows = 0;
  const std::byte* host = nullptr;

  /// Columns of a product's output: all rows of all blocks, padding included.
  std::int64_t padded_rows() const { return blocks * rows_per_block; }
  std::size_t bytes() const { return static_cast<std::size_t>(padded_rows()) * row_bytes(); }
  std::size_t row_bytes() const { return format.row_bytes(cols); }
  /// The block that alone is here, as a matrix by itself; `rows` counts the real ones.
  RowBlockMatrix own() const {
    RowBlockMatrix block = *this;
    block.rows = std::clamp<std::int64_t>(rows - only_block * rows_per_block, 0, rows_per_block);
    block.blocks = 1;
    block.only_block = -1;
    return block;
  }
  /// The parts of a split matrix of one block, as matrices by themselves. Either may have no rows.
  RowBlockMatrix device_part() const { return part(data, 0, rows_per_block - host_rows); }
  RowBlockMatrix host_part() const { return part(host, rows_per_block - host_rows, host_rows); }

 private:
  RowBlockMatrix part(const std::byte* at, std::int64_t first, std::int64_t count) const {
    RowBlockMatrix some = *this;
    some.data = at;
    some.rows = std::clamp<std::int64_t>(rows - first, 0, count);
    some.rows_per_block = count;
    some.host_rows = 0;
    some.host = nullptr;
    return some;
  }
};

/// Up to kMost matrices of equal columns and format that are multiplied side by side: the product's
/// columns of matrix i start at `first(i)`.
class Matrices {
 public:
  static constexpr std::size_t kMost = 3;

  Matrices(const RowBlockMatrix& one) : matrices_{one}, size_(1) {}  // a product takes either
  /// Throws Error for none, for more than kMost, and for matrices that differ in columns or format.
  explicit Matrices(std::span<const RowBlockMatrix> matrices);

  std::size_t size() const { return size_; }
  const RowBlockMatrix& operator[](std::size_t i) const { return matrices_[i]; }
  std::int64_t cols() const { return matrices_[0].cols; }
  const WeightFormat& format() const { return matrices_[0].format; }
  std::int64_t first(std::size_t i) const;
  /// Columns of the product: those of all matrices, padding included.
  std::int64_t padded_rows() const { return first(size_); }

 private:
  std::array<RowBlockMatrix, kMost> matrices_;
  std::size_t size_;
};

/// How one unit is cut over the ranks, by output rows. A pure value: the same arguments give the
/// same layout on every rank. For world n each matrix (out, in) gives each rank ceil(out / n) rows,
/// laid one matrix after the other at 256-byte offsets; the shard is padded to 4096 bytes, so that
/// the same bytes serve O_DIRECT, pinned memory and the gather. A gathered slot is n shards in a
/// row: a matrix is then n blocks of rows at a fixed stride, which a product multiplies in place.
class PartitionLayout {
 public:
  struct Matrix {
    TensorSpec tensor;  // (rows, cols)
    WeightFormat format;
    std::int64_t rows_per_rank;  // ceil(rows / world)
    std::size_t offset;          // of row 0 in the shard, in bytes
    std::size_t bytes;           // of rows_per_rank rows
  };
  /// Rows that a rank really holds; `count` < rows_per_rank (even 0) on the last ranks.
  struct RowRange {
    std::int64_t first;
    std::int64_t count;
  };

  /// Throws CheckpointError for a tensor that is not 2-D or is empty, ConfigError for world < 1.
  PartitionLayout(const UnitSpec& unit, const MatrixFormats& formats, int world);

  int world() const { return world_; }
  const std::vector<Matrix>& matrices() const { return matrices_; }
  std::size_t shard_bytes() const { return shard_bytes_; }
  std::size_t gathered_bytes() const { return shard_bytes_ * static_cast<std::size_t>(world_); }
  RowRange rows_of(std::size_t matrix, int rank) const;
  /// The last rows of a rank's, padding included, that the host multiplies when its share of them
  /// is `share`, from 0 to 1, or a little less: those before them are a multiple of kSplitRows.
  static constexpr std::int64_t kSplitRows = 32;
  std::int64_t host_rows(std::size_t matrix, double share) const;

  /// The matrix in a gathered slot that starts at `slot`.
  RowBlockMatrix gathered(std::size_t matrix, const std::byte* slot) const;
  /// The rank's own rows of the matrix in a shard that starts at `shard`; `rows` counts the real
  /// ones.
  RowBlockMatrix own(std::size_t matrix, const std::byte* shard, int rank) const;

 private:
  int world_;
  std::vector<Matrix> matrices_;
  std::size_t shard_bytes_ = 0;
};

}  // namespace zi
