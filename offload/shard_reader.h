#pragma once

#include <cstddef>
#include <functional>
#include <span>

#include "offload/read_threads.h"
#include "zero_infer/model_spec.h"
#include "zero_infer/partition_layout.h"
#include "zero_infer/weight_source.h"

namespace zi {

/// Makes any byte range of one rank's shard of one unit out of the weight source: its own rows and
/// nothing else, packed where the layout's format says so, padding as zeros. Any thread may call
/// it.
class ShardReader {
 public:
  /// Keeps references: source and layout outlive the reader.
  ShardReader(const WeightSource& source, const PartitionLayout& layout, int rank);

  std::size_t shard_bytes() const;

  /// Fills dst with bytes [offset, offset + dst.size()) of the shard; where rows are not packed,
  /// both are multiples of the element's size. Throws as WeightSource::read, CheckpointError for
  /// values that cannot be packed, and Error for a range that is not one of the shard.
  void read(std::size_t offset, std::span<std::byte> dst) const;

 private:
  /// Fills dst with bytes [offset, offset + dst.size()) of the rank's packed rows of a matrix.
  void read_packed(std::size_t matrix, std::size_t offset, std::span<std::byte> dst) const;

  const WeightSource* source_;
  const PartitionLayout* layout_;
  int rank_;
};

/// Starts reading bytes [offset, offset + dst.size()) of a shard into host memory, in pieces of a
/// few MiB; returns the last piece's ticket. The reader's source and layout and `dst` must stay
/// valid until somebody has waited for it. `progress` (may be empty) is told the bytes of each
/// piece as it is done (their sum is dst's), from any thread; an exception from it is a failure of
/// the read.
ReadThreads::Ticket start_shard_read(ReadThreads& threads, const ShardReader& reader,
                                     std::size_t offset, std::span<std::byte> dst,
                                     const std::function<void(std::size_t)>& progress = {});

}  // namespace zi
