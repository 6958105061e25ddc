#include "offload/shard_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
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

}  // namespace

ShardReader::ShardReader(const WeightSource& source, const PartitionLayout& layout, int rank)
    : source_(&source), layout_(&layout), rank_(rank) {
  if (rank < 0 || rank >= layout.world()) {
    throw Error(fmt::format("rank {} has no shard in a layout for {} ranks", rank, layout.world()));
  }
}

std::size_t ShardReader::shard_bytes() const { return layout_->shard_bytes(); }

void ShardReader::read(std::size_t offset, std::span<std::byte> dst) const {
  const WeightFormat& format = layout_->format();
  const std::size_t element = format.packed() ? 1 : size_of(format.dtype);
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
    const auto skipped = static_cast<std::int64_t>((part.begin - matrix.offset) / element);
    source_->read(matrix.tensor, rows.first * cols + skipped,
                  static_cast<std::int64_t>(part.bytes() / element), format.dtype, to.data());
  }
  zero_up_to(wanted.end);
}

void ShardReader::read_packed(std::size_t matrix, std::size_t offset,
                              std::span<std::byte> dst) const {
  const WeightFormat& format = layout_->format();
  const TensorSpec& tensor = layout_->matrices()[matrix].tensor;
  const std::int64_t cols = tensor.shape[1];
  const std::size_t row_bytes = format.row_bytes(cols);
  const DType stored = source_->stored_dtype(tensor.name);
  const std::size_t source_row = static_cast<std::size_t>(cols) * size_of(stored);
  const std::int64_t own = layout_->rows_of(matrix, rank_).first;
  const auto end = static_cast<std::int64_t>((offset + dst.size() + row_bytes - 1) / row_bytes);
  const auto at_once =
      std::max(std::int64_t{1}, static_cast<std::int64_t>(kPackedAtOnce / source_row));
  std::vector<std::byte> read(static_cast<std::size_t>(at_once) * source_row);
  std::vector<float> values(static_cast<std::size_t>(cols));
  std::vector<std::byte> packed(row_bytes);
  for (auto row = static_cast<std::int64_t>(offset / row_bytes); row < end; row += at_once) {
    const std::int64_t count = std::min(at_once, end - row);
    source_->read(tensor, (own + row) * cols, count * cols, stored, read.data());
    for (std::int64_t i = 0; i < count; ++i) {
      convert(read.data() + static_cast<std::size_t>(i) * source_row, stored, values.data(),
              DType::kFloat32, static_cast<std::size_t>(cols));
      if (pack_rows(values.data(), 1, cols, format, packed.data()) == 0) {
        throw CheckpointError(fmt::format(
            "tensor `{}`: row {} has a value that is not finite, or too large for {}; use other "
            "weights, or --weight-format stored",
            tensor.name, own + row + i, describe(format)));
      }
      // The first row and the last may be wanted in part.
      const std::size_t start = static_cast<std::size_t>(row + i) * row_bytes;
      const Range part = intersect({offset, offset + dst.size()}, {start, start + row_bytes});
      std::memcpy(dst.data() + (part.begin - offset), packed.data() + (part.begin - start),
                  part.bytes());
    }
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
