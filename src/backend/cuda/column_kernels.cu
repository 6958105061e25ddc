#include <algorithm>

#include "backend/cuda/column_kernels.h"
#include "backend/cuda/column_slices.cuh"
#include "backend/cuda/cuda_support.h"
#include "backend/cuda/element.cuh"
#include "zero_infer/error.h"

namespace zi {
namespace {

constexpr int kThreads = 256;
/// Blocks along y at most; kernels that need more rows walk on.
constexpr std::int64_t kMostGridY = 65535;

using Slices = ColumnSlices<std::int64_t>;

/// Whatever the values mean: they are moved.
template <typename T>
__global__ void interleave_kernel(const T* parts, int blocks, std::int64_t rows, Slices slices,
                                  T* y) {
  const std::int64_t col = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (col >= slices.sum) return;
  for (std::int64_t i = blockIdx.y; i < rows * blocks; i += gridDim.y) {
    const std::int64_t row = i / blocks;
    const std::int64_t block = i % blocks;
    y[interleaved_column<std::int64_t>(slices, row, col, block, blocks)] =
        parts[(block * rows + row) * slices.sum + col];
  }
}

struct ColumnRuns {
  ColumnRun run[Ops::kMostRuns];
};

/// A run to each z. Runs in host memory are read over the link, in whole lines.
template <int kWidth>
__global__ void put_columns_kernel(ColumnRuns runs, std::int64_t rows, float* y, std::int64_t ld) {
  const ColumnRun& run = runs.run[blockIdx.z];
  const std::int64_t col =
      (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWidth;
  if (col >= run.cols) return;
  for (std::int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const float* const from = run.x + row * run.ld + col;
    float* const to = y + row * ld + run.first + col;
    if constexpr (kWidth == 4) {
      *reinterpret_cast<Four<float>*>(to) = *reinterpret_cast<const Four<float>*>(from);
    } else {
      *to = *from;
    }
  }
}

/// (blocks of columns, rows): one thread a group of `width` columns.
dim3 grid_of(std::int64_t rows, std::int64_t cols, int width) {
  const std::int64_t groups = (cols + width - 1) / width;
  return {static_cast<unsigned>((groups + kThreads - 1) / kThreads),
          static_cast<unsigned>(std::min(rows, kMostGridY))};
}

}  // namespace

void cuda_interleave(const void* parts, DType type, int blocks, std::int64_t rows,
                     std::span<const std::int64_t> slices, void* y, cudaStream_t stream) {
  if (rows == 0) return;
  Slices widths{};
  for (std::size_t i = 0; i < slices.size(); ++i) {
    widths.width[i] = slices[i];
    widths.sum += slices[i];
  }
  const dim3 grid = grid_of(rows * blocks, widths.sum, 1);
  with_type(type, [&]<typename T>(T) {
    interleave_kernel<<<grid, kThreads, 0, stream>>>(static_cast<const T*>(parts), blocks, rows,
                                                     widths, static_cast<T*>(y));
    ZI_CUDA_LAUNCHED();
  });
}

void cuda_put_columns(std::span<const ColumnRun> runs, std::int64_t rows, float* y, std::int64_t ld,
                      cudaStream_t stream) {
  if (runs.size() > Ops::kMostRuns) throw Error("too many runs of columns");
  if (rows == 0 || runs.empty()) return;
  ColumnRuns all{};
  std::int64_t most = 0;
  bool vector = ld % 4 == 0 && is_aligned(y, 16);
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const ColumnRun& run = all.run[i] = runs[i];
    most = std::max(most, run.cols);
    vector = vector && run.ld % 4 == 0 && run.cols % 4 == 0 && run.first % 4 == 0 &&
             is_aligned(run.x, 16);
  }
  if (most == 0) return;
  dim3 grid = grid_of(rows, most, vector ? 4 : 1);
  grid.z = static_cast<unsigned>(runs.size());
  if (vector) {
    put_columns_kernel<4><<<grid, kThreads, 0, stream>>>(all, rows, y, ld);
  } else {
    put_columns_kernel<1><<<grid, kThreads, 0, stream>>>(all, rows, y, ld);
  }
  ZI_CUDA_LAUNCHED();
}

}  // namespace zi
