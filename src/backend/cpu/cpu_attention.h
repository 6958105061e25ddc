#pragma once

#include <vector>

#include "backend/host/thread_pool.h"
#include "zero_infer/ops.h"

namespace zi {

/// Causal attention over the paged cache, in float32, with an online softmax that takes the pages
/// in the order of their positions (Milakov and Gimelshein 2018). Query rows are taken in tiles, so
/// that a page is converted once for all of them; a row's arithmetic is the same in any tile.
class CpuAttention {
 public:
  /// Keeps the reference.
  explicit CpuAttention(ThreadPool& pool) : pool_(&pool) {}

  /// See Ops::attention. Blocks until it is done; one thread at a time.
  void run(const float* q, int heads, const RaggedBatch& batch, const KvLayer& kv,
           const float* slopes, void* out, DType out_dtype);

 private:
  struct Tile {
    int sequence;
    int first_row;  // in the batch
    int rows;
    int position;  // of the first row
  };
  ThreadPool* pool_;
  std::vector<Tile> tiles_;  // kept for its memory
};

}  // namespace zi
