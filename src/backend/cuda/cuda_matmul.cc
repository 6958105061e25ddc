#include "backend/cuda/cuda_matmul.h"

#include <fmt/format.h>

#include <algorithm>

#include "backend/cuda/cublas_library.h"
#include "backend/cuda/packed_rows.h"
#include "backend/cuda/row_kernels.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

#define ZI_CUBLAS(call)                                                                            \
  do {                                                                                             \
    const cublasStatus_t zi_status = (call);                                                       \
    if (zi_status != CUBLAS_STATUS_SUCCESS) {                                                      \
      throw CudaError(fmt::format("{} failed: {} at {}:{}", #call,                                 \
                                  cublas_library().status_string(zi_status), __FILE__, __LINE__)); \
    }                                                                                              \
  } while (false)

cudaDataType_t cuda_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return CUDA_R_32F;
    case DType::kFloat16:
      return CUDA_R_16F;
    case DType::kBFloat16:
      return CUDA_R_16BF;
  }
  throw Error("a product was given a dtype that does not exist");
}

}  // namespace

CudaMatmul::CudaMatmul(std::span<std::byte> workspace, std::span<std::byte> scratch)
    : workspace_(workspace), scratch_(scratch) {
  ZI_CUBLAS(cublas_library().create(&handle_));
  // float32 is float32: sums of 16-bit products are not reduced in 16 bits, TF32 stays off.
  ZI_CUBLAS(cublas_library().set_math_mode(
      handle_, static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH |
                                         CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
}

CudaMatmul::~CudaMatmul() { cublas_library().destroy(handle_); }

void CudaMatmul::run(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w, float* y,
                     cudaStream_t stream) {
  if (rows == 0) return;
  if (run_streamed(a, a_dtype, rows, w, sums_output(y, w), stream)) return;
  if (stream != stream_) {
    ZI_CUBLAS(cublas_library().set_stream(handle_, stream));
    // Setting a stream gives the handle its own workspace back.
    ZI_CUBLAS(cublas_library().set_workspace(handle_, workspace_.data(), workspace_.size()));
    stream_ = stream;
  }
  for (std::size_t i = 0; i < w.size(); ++i) {
    float* const columns = y + w.first(i);
    if (w.format().packed()) {
      product_of_packed(a, a_dtype, rows, w[i], columns, w.padded_rows(), stream);
    } else if (w.format() == a_dtype) {
      product(a, cuda_type(a_dtype), rows, w[i], columns, w.padded_rows());
    } else {
      product_in_float32(a, a_dtype, rows, w[i], columns, w.padded_rows(), stream);
    }
  }
}

bool CudaMatmul::run_streamed(const void* a, DType a_dtype, std::int64_t rows, const Matrices& w,
                              const ProductOutput& output, cudaStream_t stream) const {
  if (skinny_.fits(a, a_dtype, rows, w)) {
    skinny_.run(a, rows, w, output, stream);
    return true;
  }
  if (gemv_.fits(a, a_dtype, rows, w, output)) {
    gemv_.run(a, rows, w, output, stream);
    return true;
  }
  if (packed_.fits(a, a_dtype, rows, w, output, scratch_)) {
    packed_.run(a, a_dtype, rows, w, output, scratch_, stream);
    return true;
  }
  if (group_.fits(a, a_dtype, rows, w, output, scratch_)) {
    group_.run(a, a_dtype, rows, w, output, scratch_, stream);
    return true;
  }
  if (wide_.fits(a, a_dtype, rows, w)) {
    wide_.run(a, rows, w, output, stream);
    return true;
  }
  return false;
}

void CudaMatmul::product(const void* a, cudaDataType_t type, std::int64_t rows,
                         const RowBlockMatrix& w, float* y, std::int64_t ld) {
  // cuBLAS counts columns first: y^T (block rows, rows) = w (block rows, cols) . a^T (cols, rows).
  const float one = 1, zero = 0;
  const auto m = static_cast<int>(w.rows_per_block);
  const auto n = static_cast<int>(rows);
  const auto k = static_cast<int>(w.cols);
  const auto ldc = static_cast<int>(ld);
  if (w.blocks == 1) {
    ZI_CUBLAS(cublas_library().gemm(handle_, CUBLAS_OP_T, CUBLAS_OP_N, m, n, k, &one, w.data, type,
                                    k, a, type, k, &zero, y, CUDA_R_32F, ldc, CUBLAS_COMPUTE_32F,
                                    CUBLAS_GEMM_DEFAULT));
    return;
  }
  const auto stride = static_cast<long long>(w.block_stride_bytes / size_of(w.format.dtype));
  ZI_CUBLAS(cublas_library().gemm_strided_batched(handle_, CUBLAS_OP_T, CUBLAS_OP_N, m, n, k, &one,
                                                  w.data, type, k, stride, a, type, k, 0, &zero, y,
                                                  CUDA_R_32F, ldc, w.rows_per_block, w.blocks,
                                                  CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

void CudaMatmul::product_of_packed(const void* a, DType a_dtype, std::int64_t rows,
                                   const RowBlockMatrix& w, float* y, std::int64_t ld,
                                   cudaStream_t stream) {
  const auto most = static_cast<std::int64_t>(
      scratch_.size() / (static_cast<std::size_t>(w.cols) * size_of(a_dtype)));
  if (most == 0) {
    throw Error(fmt::format("rows of {} elements are too long to be unpacked", w.cols));
  }
  // Equal pieces, in whole tiles of cuBLAS's kernels where there are as many rows.
  constexpr std::int64_t kTileRows = 256;
  const std::int64_t equal = ceil_div(w.rows_per_block, ceil_div(w.rows_per_block, most));
  const std::int64_t whole = ceil_div(equal, kTileRows) * kTileRows;
  const std::int64_t piece_rows = whole <= most ? whole : equal;
  for (int block = 0; block < w.blocks; ++block) {
    for (std::int64_t first = 0; first < w.rows_per_block; first += piece_rows) {
      const std::int64_t count = std::min(piece_rows, w.rows_per_block - first);
      cuda_unpack_rows(w.data + static_cast<std::size_t>(block) * w.block_stride_bytes +
                           static_cast<std::size_t>(first) * w.row_bytes(),
                       count, w.cols, w.format, a_dtype, scratch_.data(), stream);
      const RowBlockMatrix piece{.data = scratch_.data(),
                                 .rows = count,
                                 .cols = w.cols,
                                 .blocks = 1,
                                 .rows_per_block = count,
                                 .block_stride_bytes = 0,
                                 .format = a_dtype};
      product(a, cuda_type(a_dtype), rows, piece, y + block * w.rows_per_block + first, ld);
    }
  }
}

void CudaMatmul::product_in_float32(const void* a, DType a_dtype, std::int64_t rows,
                                    const RowBlockMatrix& w, float* y, std::int64_t ld,
                                    cudaStream_t stream) {
  const std::size_t half = scratch_.size() / 2 / kMatrixAlignment * kMatrixAlignment;
  const std::size_t row_bytes = static_cast<std::size_t>(w.cols) * sizeof(float);
  const auto most = static_cast<std::int64_t>(half / row_bytes);
  if (most == 0) {
    throw Error(fmt::format("rows of {} elements are too long for a converted product", w.cols));
  }
  auto* const a_piece = reinterpret_cast<float*>(scratch_.data());
  auto* const w_piece = reinterpret_cast<float*>(scratch_.data() + half);
  for (std::int64_t row = 0; row < rows; row += most) {
    const std::int64_t count = std::min(most, rows - row);
    const std::byte* const a_rows = static_cast<const std::byte*>(a) +
                                    static_cast<std::size_t>(row * w.cols) * size_of(a_dtype);
    const auto* a_float = reinterpret_cast<const float*>(a_rows);
    if (a_dtype != DType::kFloat32) {
      cuda_convert(a_rows, a_dtype, a_piece, DType::kFloat32, count * w.cols, stream);
      a_float = a_piece;
    }
    for (int block = 0; block < w.blocks; ++block) {
      for (std::int64_t first = 0; first < w.rows_per_block; first += most) {
        const std::int64_t w_count = std::min(most, w.rows_per_block - first);
        RowBlockMatrix piece{.data = w.data +
                                     static_cast<std::size_t>(block) * w.block_stride_bytes +
                                     static_cast<std::size_t>(first) * w.row_bytes(),
                             .rows = w_count,
                             .cols = w.cols,
                             .blocks = 1,
                             .rows_per_block = w_count,
                             .block_stride_bytes = 0,
                             .format = DType::kFloat32};
        if (w.format != DType::kFloat32) {
          cuda_convert(piece.data, w.format.dtype, w_piece, DType::kFloat32, w_count * w.cols,
                       stream);
          piece.data = reinterpret_cast<const std::byte*>(w_piece);
        }
        product(a_float, CUDA_R_32F, count, piece, y + row * ld + block * w.rows_per_block + first,
                ld);
      }
    }
  }
}

}  // namespace zi
