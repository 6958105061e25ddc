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

/// Some of the rows of a block, as a matrix of one block.
RowBlockMatrix rows_of_block(const RowBlockMatrix& w, int block, std::int64_t first,
                             std::int64_t count) {
  return {.data = w.data + static_cast<std::size_t>(block) * w.block_stride_bytes +
                  static_cast<std::size_t>(first) * w.row_bytes(),
          .rows = count,
          .cols = w.cols,
          .blocks = 1,
          .rows_per_block = count,
          .block_stride_bytes = 0,
          .format = w.format};
}

}  // namespace

CudaMatmul::CudaMatmul(std::span<std::byte> workspace, std::span<std::byte> scratch)
    : workspace_(workspace), scratch_(scratch) {
  ZI_CUBLAS(cublas_library().create(&handle_));
  // float32 is float32: sums of 16-bit products are not reduced in 16 bits, TF32 stays off.
  ZI_CUBLAS(cublas_library().set_math_mode(
      handle_, static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH |
                                         CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
  rounded_.emplace(handle_, workspace_);
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
      product(a, cublas_type(a_dtype), rows, w[i], columns, w.padded_rows());
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

bool CudaMatmul::run_rounded(const void* a, DType type, std::int64_t rows, const RowBlockMatrix& w,
                             const float* bias, std::optional<Activation> activation, void* scratch,
                             void* y, std::int64_t ld, cudaStream_t stream) {
  // The kernels for few rows keep sums in registers, or are bound by other things.
  if (rows <= WideMatmul::kMaxRows || type == DType::kFloat32 ||
      !(w.format == type || w.format.packed()) ||
      (activation && !RoundedProduct::has(*activation))) {
    return false;
  }
  if (bias != nullptr) cuda_convert(bias, DType::kFloat32, scratch, type, w.rows, stream);
  const std::size_t element = size_of(type);
  bool done = true;
  const auto multiply = [&](const RowBlockMatrix& piece, std::int64_t first) {
    const std::size_t offset = static_cast<std::size_t>(first) * element;
    done =
        done && rounded_->run(
                    {.a = a,
                     .w = piece.data,
                     .bias = bias == nullptr ? nullptr : static_cast<std::byte*>(scratch) + offset,
                     .y = static_cast<std::byte*>(y) + offset,
                     .rows = rows,
                     .w_rows = piece.rows,
                     .cols = piece.cols,
                     .ld = ld,
                     .type = type,
                     .activation = activation},
                    stream);
  };
  if (w.format.packed()) {
    unpack_in_pieces(w, type, multiply, stream);
  } else {
    for (int block = 0; block < w.blocks; ++block) {
      multiply(rows_of_block(w, block, 0, w.rows_per_block), block * w.rows_per_block);
    }
  }
  return done;
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

template <typename Call>
void CudaMatmul::unpack_in_pieces(const RowBlockMatrix& w, DType type, const Call& call,
                                  cudaStream_t stream) {
  const auto most = static_cast<std::int64_t>(scratch_.size() /
                                              (static_cast<std::size_t>(w.cols) * size_of(type)));
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
      RowBlockMatrix piece = rows_of_block(w, block, first, count);
      cuda_unpack_rows(piece.data, count, w.cols, w.format, type, scratch_.data(), stream);
      piece.data = scratch_.data();
      piece.format = type;
      call(piece, block * w.rows_per_block + first);
    }
  }
}

void CudaMatmul::product_of_packed(const void* a, DType a_dtype, std::int64_t rows,
                                   const RowBlockMatrix& w, float* y, std::int64_t ld,
                                   cudaStream_t stream) {
  unpack_in_pieces(
      w, a_dtype,
      [&](const RowBlockMatrix& piece, std::int64_t first) {
        product(a, cublas_type(a_dtype), rows, piece, y + first, ld);
      },
      stream);
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
        RowBlockMatrix piece = rows_of_block(w, block, first, w_count);
        piece.format = DType::kFloat32;
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
