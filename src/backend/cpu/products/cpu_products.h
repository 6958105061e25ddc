#pragma once

#include <cstdint>
#include <vector>

#include "backend/cpu/products/product_kernels.h"
#include "backend/host/scratch.h"
#include "backend/host/thread_pool.h"
#include "zero_infer/partition_layout.h"

namespace zi {

/// Products of bfloat16 or float16 activations with weights of the same type or packed ones, whose
/// values are those that unpack_rows makes of this type. A row's result has the same bits for any
/// number and order of rows, any cut of the matrix into blocks of rows, and any number of threads;
/// packed weights' is that of their values. Other instructions may give other bits of bfloat16;
/// those of float16, which are multiplied as float32, are the same with all.
class CpuProducts {
 public:
  /// Whether there is code for these instructions, and for such operands.
  static bool has(InstructionSet set);
  static bool takes(DType a_dtype, const WeightFormat& format);

  /// Keeps the reference. Throws Error for a set that is not there.
  CpuProducts(ThreadPool& pool, InstructionSet set);

  /// The first w.padded_rows() columns of y (rows, ld) = a (rows, w.cols) . w^T; see Ops::matmul.
  /// Blocks until it is done; one thread at a time.
  void run(const void* a, DType a_dtype, std::int64_t rows, const RowBlockMatrix& w, float* y,
           std::int64_t ld);

 private:
  void run_group(const ProductKernels& kernels, const std::uint16_t* a, std::int64_t rows,
                 const RowBlockMatrix& w, const WeightReader& weights, float* y, std::int64_t ld);
  std::int64_t job_rows(const ProductKernels& kernels, std::int64_t rows, const RowBlockMatrix& w,
                        const WeightReader& weights) const;

  ThreadPool& pool_;
  InstructionSet set_;
  const ProductKernels& bfloat16_;
  const ProductKernels& float16_;
  Scratch packed_;
  struct OfThread {
    Scratch scratch;
    const std::byte* next =
        nullptr;  // the end of its last job, which asked memory for what follows
  };
  std::vector<OfThread> threads_;
};

}  // namespace zi
