#pragma once

#include <cstdint>
#include <optional>

#include "backend/cpu/float_products.h"
#include "backend/cpu/products/cpu_products.h"
#include "backend/host/thread_pool.h"
#include "zero_infer/dtype.h"
#include "zero_infer/partition_layout.h"

namespace zi {

/// Chooses who makes a product: CpuProducts for activations of a 16-bit type with weights of the
/// same type or packed ones, else FloatProducts. A row's result has the same bits for any number
/// and order of rows.
class CpuMatmul {
 public:
  /// Keeps the reference.
  explicit CpuMatmul(ThreadPool& pool);

  /// The first w.padded_rows() columns of y (rows, ld) = a (rows, w.cols) . w^T; see Ops::matmul.
  /// Blocks until it is done; one thread at a time. Throws Error with oneDNN's reason.
  void run(const void* a, DType a_dtype, std::int64_t rows, const RowBlockMatrix& w, float* y,
           std::int64_t ld);

 private:
  void warn_of_float32(DType type);

  std::optional<CpuProducts> products_;  // where there is code for this CPU
  FloatProducts float_products_;
  bool warned_ = false;
};

}  // namespace zi
