#include "offload/shard_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "zero_infer/error.h"

namespace zi {
namespace {

/// Large enough for a disk's full speed, small enough that threads finish together.
constexpr std::size_t kPieceBytes = std::size_t{8} << 20;

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
  const std::size_t element = size_of(layout_->dtype());
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
    const std::size_t bytes = static_cast<std::size_t>(rows.count * cols) * element;
    const Range part = intersect(wanted, {matrix.offset, matrix.offset + bytes});
    if (part.bytes() == 0) continue;
    zero_up_to(part.begin);
    const auto skipped = static_cast<std::int64_t>((part.begin - matrix.offset) / element);
    source_->read(matrix.tensor, rows.first * cols + skipped,
                  static_cast<std::int64_t>(part.bytes() / element), layout_->dtype(),
                  dst.data() + (part.begin - offset));
    done = part.end;
  }
  zero_up_to(wanted.end);
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
