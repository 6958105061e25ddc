#pragma once

#include <cstdint>
#include <memory>

#include "backend/host/thread_pool.h"
#include "zero_infer/dtype.h"
#include "zero_infer/partition_layout.h"

namespace zi {

/// Products in float32 by oneDNN, whose rows have the same bits for any number and order of rows.
/// The usual call (rows of `a` as oneDNN's source) would choose kernels by the number of rows,
/// which sum in different orders. Here the roles are swapped and all sizes are fixed: a chunk of
/// weight rows is the source, always of the same height for a matrix, and a tile of 16 activation
/// rows, packed as the kernel wants it, is the weights. The packing is paid once per call; the big
/// matrix streams through, once for all tiles, and what is not float32 in it is converted chunk by
/// chunk.
class FloatProducts {
 public:
  /// Keeps the reference.
  explicit FloatProducts(ThreadPool& pool);
  ~FloatProducts();

  /// The first w.padded_rows() columns of y (rows, ld) = a (rows, w.cols) . w^T; see Ops::matmul.
  /// Blocks until it is done; one thread at a time. Throws Error with oneDNN's reason.
  void run(const void* a, DType a_dtype, std::int64_t rows, const RowBlockMatrix& w, float* y,
           std::int64_t ld);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace zi
