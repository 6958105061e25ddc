#include "offload/shard_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "packing/pack_rows.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// Large enough for a disk's full speed, small enough that threads finish together.
constexpr std::size_t kPieceBytes = std::size_t{8} << 20;

/// Of the source, read and packed at once.
constexpr std::size_t kPackedAtOnce = std::size_t{2} << 20;

/// A part of the wanted range of the shard, in the shard's offsets.
struct Range {
  std::size_t begin;
  std::size_t end;
  std::size_t bytes() const { return end > begin ? end - begin : 0; }
};

Range intersect(Range a, Range b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

/// Rows of a matrix in a packed format: read as they are stored, or packed when they are read.
class PackedRows {
 public:
  PackedRows(const WeightSource& source, const TensorSpec& tensor, const WeightFormat& format)
      : source_(source),
        tensor_(tensor),
        format_(format),
        cols_(tensor.shape[1]),
        row_bytes_(format.row_bytes(cols_)),
        stored_(source.packed_format(tensor.name)) {
    if (stored_ && *stored_ != format) {
      throw CheckpointError(fmt::format("tensor `{}` is stored in {}, and wanted in {}",
                                        tensor.name, name_of(*stored_), name_of(format)));
    }
    if (!stored_) dtype_ = source.stored_dtype(tensor.name);
    source_row_ = stored_ ? row_bytes_ : static_cast<std::size_t>(cols_) * size_of(dtype_);
  }

  bool stored() const { return stored_.has_value(); }

  /// Rows that are read in one go, of `wanted`. Stored ones need no memory of their own, and those
  /// of which the columns stand together in the file are read best with many others.
  std::int64_t at_once(std::int64_t wanted) const {
    if (stored_) return wanted;
    const auto fit = static_cast<std::int64_t>(kPackedAtOnce / source_row_);
    return std::min(wanted, std::max(std::int64_t{1}, fit));
  }

  void read(std::int64_t first, std::int64_t count, std::byte* out) const {
    if (stored_) {
      source_.read_packed(tensor_, first, count, out);
      return;
    }
    std::vector<std::byte> read(static_cast<std::size_t>(count) * source_row_);
    std::vector<float> values(static_cast<std::size_t>(cols_));
    source_.read(tensor_, first * cols_, count * cols_, dtype_, read.data());
    for (std::int64_t i = 0; i < count; ++i, out += row_bytes_) {
      convert(read.data() + static_cast<std::size_t>(i) * source_row_, dtype_, values.data(),
              DType::kFloat32, values.size());
      if (pack_rows(values.data(), 1, cols_, format_, out) == 1) continue;
      throw CheckpointError(fmt::format(
          "tensor `{}`: row {} has a value that is not finite, or too large for {}; use other "
          "weights, or no --weight-format and --head-format",
          tensor_.name, first + i, describe(format_)));
    }
  }

 private:
  const WeightSource& source_;
  const TensorSpec& tensor_;
  WeightFormat format_;
  std::int64_t cols_;
  std::size_t row_bytes_;
  std::optional<WeightFormat> stored_;
  DType dtype_ = DType::kFloat32;
  std::size_t source_row_ = 0;
};

}  // namespace

ShardReader::ShardReader(const WeightSource& source, const PartitionLayout& layout, int rank)
    : source_(&source), layout_(&layout), rank_(rank) {
  if (rank < 0 || rank >= layout.world()) {
    throw Error(fmt::format("rank {} has no shard in a layout for {} ranks", rank, layout.world()));
  }
}

std::size_t ShardReader::shard_bytes() const { return layout_->shard_bytes(); }

void ShardReader::read(std::size_t offset, std::span<std::byte> dst) const {
  std::size_t element = 1;
  for (const PartitionLayout::Matrix& matrix : layout_->matrices()) {
    if (!matrix.format.packed()) element = std::max(element, size_of(matrix.format.dtype));
  }
  if (offset > shard_bytes() || dst.size() > shard_bytes() - offset) {
    throw Error(fmt::format("bytes [{}, +{}) lie outside a shard of {} bytes", offset, dst.size(),
                            shard_bytes()));
  }
  if (offset % element != 0 || dst.size() % element != 0) {
    throw Error(
        fmt::format("bytes [{}, +{}) of a shard do not start and end between elements of {} "
                    "bytes",
                    offset, dst.size(), element));
  }
  const Range wanted{offset, offset + dst.size()};
  std::size_t done = wanted.begin;  // everything before it is filled
  const auto zero_up_to = [&](std::size_t end) {
    if (end > done) std::memset(dst.data() + (done - offset), 0, end - done);
    done = std::max(done, end);
  };
  const auto& matrices = layout_->matrices();
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    // The rank's rows are one contiguous range of the tensor and of the shard: rows need no loop.
    const PartitionLayout::Matrix& matrix = matrices[i];
    const WeightFormat& format = matrix.format;
    const PartitionLayout::RowRange rows = layout_->rows_of(i, rank_);
    const std::int64_t cols = matrix.tensor.shape[1];
    const std::size_t bytes = static_cast<std::size_t>(rows.count) * format.row_bytes(cols);
    const Range part = intersect(wanted, {matrix.offset, matrix.offset + bytes});
    if (part.bytes() == 0) continue;
    zero_up_to(part.begin);
    done = part.end;
    const std::span<std::byte> to = dst.subspan(part.begin - offset, part.bytes());
    if (format.packed()) {
      read_packed(i, part.begin - matrix.offset, to);
      continue;
    }
    const std::size_t own = size_of(format.dtype);
    const auto skipped = static_cast<std::int64_t>((part.begin - matrix.offset) / own);
    source_->read(matrix.tensor, rows.first * cols + skipped,
                  static_cast<std::int64_t>(part.bytes() / own), format.dtype, to.data());
  }
  zero_up_to(wanted.end);
}

void ShardReader::read_packed(std::size_t matrix, std::size_t offset,
                              std::span<std::byte> dst) const {
  const WeightFormat& format = layout_->matrices()[matrix].format;
  const TensorSpec& tensor = layout_->matrices()[matrix].tensor;
  const std::size_t row_bytes = format.row_bytes(tensor.shape[1]);
  const PackedRows rows(*source_, tensor, format);
  const std::int64_t own = layout_->rows_of(matrix, rank_).first;
  const std::size_t skipped = offset % row_bytes;
  const bool cuts = skipped != 0 || (offset + dst.size()) % row_bytes != 0;
  if (rows.stored() && cuts) {
    // Rows that are cut are read with the others: where a row is a column of the file, it takes a
    // read of each of the file's lines.
    const std::size_t count = (skipped + dst.size() + row_bytes - 1) / row_bytes;
    const auto all = std::make_unique_for_overwrite<std::byte[]>(count * row_bytes);
    rows.read(own + static_cast<std::int64_t>(offset / row_bytes), static_cast<std::int64_t>(count),
              all.get());
    std::memcpy(dst.data(), all.get() + skipped, dst.size());
    return;
  }
  const auto end = static_cast<std::int64_t>((offset + dst.size() + row_bytes - 1) / row_bytes);
  const Range wanted{offset, offset + dst.size()};
  std::vector<std::byte> whole;  // the first row and the last may be wanted in part
  for (auto row = static_cast<std::int64_t>(offset / row_bytes); row < end;) {
    const std::size_t start = static_cast<std::size_t>(row) * row_bytes;
    // A row of which a part is wanted is read alone.
    const bool cut = start < wanted.begin || wanted.end - start < row_bytes;
    const auto whole_rows = static_cast<std::int64_t>((wanted.end - start) / row_bytes);
    const std::int64_t count = cut ? 1 : rows.at_once(whole_rows);
    const Range read{start, start + static_cast<std::size_t>(count) * row_bytes};
    const Range part = intersect(wanted, read);
    std::byte* const to = dst.data() + (part.begin - offset);
    if (part.bytes() == read.bytes()) {
      rows.read(own + row, count, to);
    } else {
      whole.resize(read.bytes());
      rows.read(own + row, count, whole.data());
      std::memcpy(to, whole.data() + (part.begin - read.begin), part.bytes());
    }
    row += count;
  }
}

ReadThreads::Ticket start_shard_read(ReadThreads& threads, const ShardReader& reader,
                                     std::size_t offset, std::span<std::byte> dst,
                                     const std::function<void(std::size_t)>& progress) {
  ReadThreads::Ticket last = 0;
  std::size_t begin = 0;
  do {
    const std::size_t bytes = std::min(kPieceBytes, dst.size() - begin);
    last =
        threads.start([reader, at = offset + begin, piece = dst.subspan(begin, bytes), progress] {
          reader.read(at, piece);
          if (progress) progress(piece.size());
        });
    begin += bytes;
  } while (begin < dst.size());
  return last;
}

}  // namespace zi
