#include "offload/shard_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

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

void read_shard(const ShardReader& reader, std::size_t offset, std::span<std::byte> dst,
                int threads, const std::function<void(std::size_t)>& progress) {
  const std::size_t pieces = (dst.size() + kPieceBytes - 1) / kPieceBytes;
  std::atomic<std::size_t> next{0};
  std::mutex mutex;  // guards failure and calls of progress
  std::exception_ptr failure;

  const auto work = [&] {
    for (std::size_t piece = next++; piece < pieces; piece = next++) {
      const std::size_t begin = piece * kPieceBytes;
      const std::size_t bytes = std::min(kPieceBytes, dst.size() - begin);
      try {
        reader.read(offset + begin, dst.subspan(begin, bytes));
        if (!progress) continue;
        const std::lock_guard lock(mutex);
        progress(bytes);
      } catch (...) {
        next = pieces;  // the others stop after the piece in hand
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
        return;
      }
    }
  };
  {
    const auto wanted = static_cast<std::size_t>(std::max(1, threads));
    const std::size_t helpers = pieces == 0 ? 0 : std::min(pieces, wanted) - 1;
    std::vector<std::jthread> workers;
    workers.reserve(helpers);
    try {
      for (std::size_t i = 0; i < helpers; ++i) workers.emplace_back(work);
    } catch (const std::system_error&) {
      // No more threads to be had: those that run share the pieces.
    }
    work();
  }  // joins
  if (failure) std::rethrow_exception(failure);
}

}  // namespace zi
