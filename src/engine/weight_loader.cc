#include "engine/weight_loader.h"

#include <algorithm>
#include <stop_token>
#include <utility>

namespace zi {
namespace {

/// Bytes of pages that are taken at a time: few enough that reads of the same part soon follow.
constexpr std::size_t kPagesBytes = std::size_t{32} << 20;
/// Pieces that are being copied to the device while the others are being read.
constexpr std::size_t kCopying = 2;

}  // namespace

WeightLoader::WeightLoader(Device& device, Ops& ops, const WeightSource& source,
                           const Options& options, std::function<void(std::size_t)> progress)
    : device_(&device),
      ops_(&ops),
      source_(&source),
      options_(options),
      progress_(std::move(progress)),
      stream_(device.make_stream("load")),
      reads_(options.threads) {}

WeightLoader::~WeightLoader() = default;

void WeightLoader::take_pages_ahead(std::vector<std::span<std::byte>> parts) {
  pages_ = std::jthread([this, parts = std::move(parts)](const std::stop_token& stop) {
    lower_priority();
    try {
      for (const std::span<std::byte>& part : parts) {
        for (std::size_t at = 0; at < part.size() && !stop.stop_requested(); at += kPagesBytes) {
          device_->take_pages(part.subspan(at, std::min(kPagesBytes, part.size() - at)));
        }
      }
    } catch (...) {
      pages_failure_ = std::current_exception();
    }
  });
}

bool WeightLoader::can_make(const PartitionLayout& layout) {
  return std::ranges::all_of(layout.matrices(), [](const PartitionLayout::Matrix& m) {
    return !m.format.packed() || m.format == kInt8Weights || m.format == kInt4Weights;
  });
}

void WeightLoader::load_to_device(const PartitionLayout& layout, std::byte* dst) {
  const bool by_rule =
      can_make(layout) &&
      std::ranges::all_of(layout.matrices(), [&](const PartitionLayout::Matrix& m) {
        return source_->uniform(m.tensor).has_value();
      });
  if (by_rule) {
    make(layout, dst);
    if (progress_) progress_(layout.shard_bytes());
  } else if (device_->is_host()) {
    load_to_host(layout, {dst, layout.shard_bytes()});
  } else {
    send(layout, dst);
  }
}

void WeightLoader::load_to_host(const PartitionLayout& layout, std::span<std::byte> dst) {
  start_shard_read(reads_, ShardReader(*source_, layout, options_.rank), 0, dst, progress_);
}

void WeightLoader::finish() {
  for (std::size_t i = 0; i < pieces_.size(); ++i) copy(pieces_[next_++ % pieces_.size()]);
  reads_.finish();
  stream_->synchronize();
  if (pages_.joinable()) pages_.join();
  if (pages_failure_) std::rethrow_exception(pages_failure_);
}

void WeightLoader::make(const PartitionLayout& layout, std::byte* dst) {
  device_->zero(dst, layout.shard_bytes(), *stream_);  // the padding
  for (std::size_t i = 0; i < layout.matrices().size(); ++i) {
    const PartitionLayout::Matrix& matrix = layout.matrices()[i];
    const PartitionLayout::RowRange rows = layout.rows_of(i, options_.rank);
    const std::int64_t cols = matrix.tensor.shape[1];
    ops_->fill_uniform_rows(*source_->uniform(matrix.tensor), rows.first, rows.count, cols,
                            matrix.format, dst + matrix.offset, *stream_);
  }
}

void WeightLoader::send(const PartitionLayout& layout, std::byte* dst) {
  if (pieces_.front().copied == nullptr) {
    for (Piece& piece : pieces_) {
      piece.memory = device_->allocate_pinned(kPieceBytes);
      piece.copied = device_->make_event();
    }
  }
  const ShardReader reader(*source_, layout, options_.rank);
  for (std::size_t offset = 0; offset < reader.shard_bytes(); offset += kPieceBytes, ++next_) {
    // The oldest pieces are read by now, or nearly: send them on, and the memory of the one before
    // is free.
    copy(pieces_[(next_ + kCopying) % pieces_.size()]);
    Piece& piece = pieces_[next_ % pieces_.size()];
    piece.copied->synchronize();
    piece.bytes = std::min(kPieceBytes, reader.shard_bytes() - offset);
    piece.dst = dst + offset;
    piece.read =
        start_shard_read(reads_, reader, offset, piece.memory.span().first(piece.bytes), progress_);
  }
}

void WeightLoader::copy(Piece& piece) {
  if (piece.bytes == 0) return;
  reads_.wait(piece.read);
  device_->copy(piece.dst, piece.memory.data(), piece.bytes, *stream_);
  stream_->record(*piece.copied);
  piece.bytes = 0;
}

}  // namespace zi
