#pragma once

#include <cublas_v2.h>

#include <cstddef>
#include <optional>
#include <span>

#include "backend/cuda/cuda_support.h"
#include "backend/cuda/group_matmul.h"
#include "backend/cuda/packed_gemv.h"
#include "backend/cuda/packed_matmul.h"
#include "backend/cuda/rounded_product.h"
#include "backend/cuda/skinny_matmul.h"
#include "backend/cuda/wide_matmul.h"
#include "zero_infer/ops.h"

namespace zi {

/// Ops::matmul by SkinnyMatmul, WideMatmul, PackedGemv, PackedMatmul or GroupMatmul where they fit,
/// else by cuBLAS: the row blocks of a gathered slot are one strided-batched product, in place.
/// Products of equal 16-bit types run on tensor cores; packed weights become that type first, piece
/// by piece; all other pairs of types are converted to float32, in pieces as well, and multiplied
/// in float32.
class CudaMatmul {
 public:
  /// `workspace` is cuBLAS's, `scratch` holds converted pieces; both are
  /// device memory, used in the stream's order.
  CudaMatmul(std::span<std::byte> workspace, std::span<std::byte> scratch);
  ~CudaMatmul();
  CudaMatmul(const CudaMatmul&) = delete;
  CudaMatmul& operator=(const CudaMatmul&) = delete;

  /// y (rows, w.padded_rows()).
  void run(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w, float* y,
           cudaStream_t stream);

  /// Does a product of few rows and finishes its sums as `output` says, by one of those
  /// classes; returns false and does nothing where none fits.
  bool run_streamed(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
                    const ProductOutput& output, cudaStream_t stream) const;

  /// Does a product of many rows whose sums are rounded to `type`, after a bias and an activation:
  /// y (rows, ld), columns [0, w.padded_rows()). Returns false for few rows, and where
  /// RoundedProduct cannot; y is undefined then. The bias (w.rows), or null, is rounded to `type`,
  /// too, in `scratch`, device memory for w.padded_rows() elements.
  bool run_rounded(const void* a, DType type, std::int64_t rows, const RowBlockMatrix& w,
                   const float* bias, std::optional<Activation> activation, void* scratch, void* y,
                   std::int64_t ld, cudaStream_t stream);

 private:
  /// y (rows, ld) columns [0, blocks * rows_per_block) = a . w^T with both of the same type.
  void product(const void* a, cudaDataType_t type, std::int64_t rows, const RowBlockMatrix& w,
               float* y, std::int64_t ld);
  /// call(piece, its first row) for packed rows as a type, in pieces of one block: each is there
  /// until the next, in the stream's order.
  template <typename Call>
  void unpack_in_pieces(const RowBlockMatrix& w, DType type, const Call& call, cudaStream_t stream);
  /// The same of packed weights, in pieces.
  void product_of_packed(const void* a, DType a_dtype, std::int64_t rows, const RowBlockMatrix& w,
                         float* y, std::int64_t ld, cudaStream_t stream);
  void product_in_float32(const void* a, DType a_dtype, std::int64_t rows, const RowBlockMatrix& w,
                          float* y, std::int64_t ld, cudaStream_t stream);

  SkinnyMatmul skinny_;
  WideMatmul wide_;
  PackedGemv gemv_;
  PackedMatmul packed_;
  GroupMatmul group_;
  std::optional<RoundedProduct> rounded_;
  cublasHandle_t handle_ = nullptr;
  cudaStream_t stream_ = nullptr;
  std::span<std::byte> workspace_;
  std::span<std::byte> scratch_;
};

}  // namespace zi
