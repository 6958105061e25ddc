#pragma once

#include <cstddef>

#include "zero_infer/partition_layout.h"

namespace zi {

/// One unit's weights for the time of its compute.
struct UnitWeights {
  const PartitionLayout* layout = nullptr;
  const std::byte* data = nullptr;  // layout->gathered_bytes(), or this rank's shard
  int only_block = -1;              // this rank, in a pass in which weights stay; else -1
  RowBlockMatrix matrix(std::size_t i) const {
    RowBlockMatrix matrix = layout->gathered(i, data);
    matrix.only_block = only_block;
    return matrix;
  }
};

}  // namespace zi
