#pragma once

#include <cstddef>

#include "zero_infer/partition_layout.h"

namespace zi {

/// One unit's weights for the time of its compute.
struct UnitWeights {
  const PartitionLayout* layout = nullptr;
  const std::byte* data = nullptr;  // layout->gathered_bytes(), or this rank's shard
  int only_block = -1;              // this rank, in a pass in which weights stay; else -1
  double host_share = 0;            // of this rank's rows that are not in `data`, but in its
  const std::byte* host = nullptr;  // shard, in host memory

  /// Split where the host has a share of it.
  RowBlockMatrix matrix(std::size_t i) const {
    RowBlockMatrix matrix = layout->gathered(i, data);
    matrix.only_block = only_block;
    matrix.host_rows = layout->host_rows(i, host_share);
    if (matrix.host_rows > 0) {
      matrix.host =
          host + layout->matrices()[i].offset +
          static_cast<std::size_t>(matrix.rows_per_block - matrix.host_rows) * matrix.row_bytes();
    }
    return matrix;
  }
  /// Bytes of the host's share.
  std::size_t host_bytes() const {
    std::size_t bytes = 0;
    for (std::size_t i = 0; host_share > 0 && i < layout->matrices().size(); ++i) {
      const RowBlockMatrix m = matrix(i);
      bytes += static_cast<std::size_t>(m.host_rows) * m.row_bytes();
    }
    return bytes;
  }
};

}  // namespace zi
