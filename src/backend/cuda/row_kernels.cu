#include <algorithm>

#include "backend/cuda/cuda_support.h"
#include "backend/cuda/element.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/row_kernels.h"
#include "zero_infer/random.h"

namespace zi {
namespace {

constexpr int kWarp = 32;
constexpr int kElementThreads = 256;
constexpr int kMostNormThreads = 1024;
/// Blocks along y at most; kernels that need more rows walk on.
constexpr std::int64_t kMostGridY = 65535;

/// The sum of one value of each thread of the block, in a fixed order; every thread gets it.
/// `warp_sums` is shared memory for this call alone.
__device__ float block_sum(float value, float (&warp_sums)[kWarp]) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  if (lane == 0) warp_sums[warp] = value;
  __syncthreads();
  value = lane < warps ? warp_sums[lane] : 0.0f;
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

/// Where a row to be normalised comes from.
struct NormInput {
  const float* x;
  std::int64_t ld;
  const float* bias;  // or null
  float* residual;    // or null; else the row is residual + x + bias, and written back there
};

/// A block normalises a row, kept in registers: kFours * 4 values a thread; the variance is taken
/// of the differences from the mean. kVector: rows are whole, aligned groups of four. The model's
/// vectors, which no kernel writes, are read before the earlier work of the stream is done, where
/// registers hold them.
template <typename T, int kFours, bool kVector>
__global__ void __launch_bounds__(kMostNormThreads)
    norm_kernel(NormInput in, Norm norm, std::int64_t cols, T* y) {
  constexpr int kWidth = kVector ? 4 : 1;
  constexpr int kCount = kVector ? kFours : kFours * 4;
  constexpr bool kEarly = kFours == 1;
  using Values = Four<float>;
  __shared__ float sums_of_values[kWarp], sums_of_squares[kWarp];
  const auto column = [](int i) {
    return (static_cast<std::int64_t>(i) * blockDim.x + threadIdx.x) * kWidth;
  };
  const auto load = [](const float* from) {
    Values v{};
    if constexpr (kVector) {
      v = *reinterpret_cast<const Values*>(from);
    } else {
      v.v[0] = *from;
    }
    return v;
  };
  constexpr int kHeld = kEarly ? kCount : 1;
  Values gammas[kHeld] = {}, betas[kHeld] = {}, biases[kHeld] = {};
  let_next_start();
  if constexpr (kEarly) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const std::int64_t col = column(i);
      if (col >= cols) continue;
      gammas[i] = load(norm.gamma + col);
      if (norm.beta != nullptr) betas[i] = load(norm.beta + col);
      if (in.bias != nullptr) biases[i] = load(in.bias + col);
    }
  }
  wait_for_previous();
  const std::int64_t row = blockIdx.x;
  const float* const x = in.x + row * in.ld;
  Values values[kCount] = {};
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const std::int64_t col = column(i);
    if (col >= cols) continue;
    values[i] = load(x + col);
    if (in.residual != nullptr) {
      float* const residual = in.residual + row * cols + col;
      const Values rest = load(residual);
      const Values bias = kEarly               ? biases[i % kHeld]
                          : in.bias == nullptr ? Values{}
                                               : load(in.bias + col);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) values[i].v[j] = rest.v[j] + (values[i].v[j] + bias.v[j]);
      if constexpr (kVector) {
        *reinterpret_cast<Values*>(residual) = values[i];
      } else {
        *residual = values[i].v[0];
      }
    }
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum += values[i].v[j];
  }
  const float mean =
      norm.centred ? block_sum(sum, sums_of_values) / static_cast<float>(cols) : 0.0f;
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (column(i) >= cols) continue;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const float d = values[i].v[j] - mean;
      squares += d * d;
    }
  }
  const float scale =
      rsqrtf(block_sum(squares, sums_of_squares) / static_cast<float>(cols) + norm.epsilon);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const std::int64_t col = column(i);
    if (col >= cols) continue;
    const Values g = kEarly ? gammas[i % kHeld] : load(norm.gamma + col);
    const Values b = kEarly                 ? betas[i % kHeld]
                     : norm.beta == nullptr ? Values{}
                                            : load(norm.beta + col);
    Four<T> out;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      out.v[j] = from_float<T>((values[i].v[j] - mean) * scale * g.v[j] + b.v[j]);
    }
    T* const to = y + row * cols + col;
    if constexpr (kVector) {
      *reinterpret_cast<Four<T>*>(to) = out;
    } else {
      *to = out.v[0];
    }
  }
}

template <typename T, int kFours>
void launch_norm(const NormInput& in, const Norm& norm, std::int64_t rows, std::int64_t cols, T* y,
                 cudaStream_t stream) {
  const auto per_thread = static_cast<std::int64_t>(kFours) * 4;
  const auto threads =
      static_cast<unsigned>((cols + per_thread * kWarp - 1) / (per_thread * kWarp)) * kWarp;
  const bool vector = cols % 4 == 0 && in.ld % 4 == 0 && is_aligned(in.x, 16) &&
                      is_aligned(norm.gamma, 16) && is_aligned(norm.beta, 16) &&
                      is_aligned(y, 4 * sizeof(T)) && is_aligned(in.residual, 16) &&
                      is_aligned(in.bias, 16);
  const auto blocks = static_cast<unsigned>(rows);
  if (vector) {
    launch_early(norm_kernel<T, kFours, true>, blocks, threads, 0, stream, in, norm, cols, y);
  } else {
    launch_early(norm_kernel<T, kFours, false>, blocks, threads, 0, stream, in, norm, cols, y);
  }
}

void normalize(const NormInput& in, const Norm& norm, std::int64_t rows, std::int64_t cols, void* y,
               DType y_dtype, cudaStream_t stream) {
  if (rows == 0) return;
  with_type(y_dtype, [&]<typename T>(T) {
    T* const out = static_cast<T*>(y);
    // Few values a thread keep a decoding pass's single row fast, up to 1024 threads of them.
    if (cols <= 4096) {
      launch_norm<T, 1>(in, norm, rows, cols, out, stream);
    } else if (cols <= 16384) {
      launch_norm<T, 4>(in, norm, rows, cols, out, stream);
    } else if (cols <= 65536) {
      launch_norm<T, 16>(in, norm, rows, cols, out, stream);
    } else {
      throw ConfigError("the CUDA backend normalises rows of up to 65536 elements");
    }
  });
}

template <typename T, typename X, int kWidth>
__global__ void activate_kernel(const X* x, std::int64_t ld, Activate activate, std::int64_t rows,
                                std::int64_t cols, T* y) {
  wait_for_previous();
  const std::int64_t col =
      (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWidth;
  if (col >= cols) return;
  const auto at = [&](const float* vector) { return vector == nullptr ? nullptr : vector + col; };
  const auto bias = load_floats<kWidth>(at(activate.bias));
  const auto up_bias = load_floats<kWidth>(at(activate.up_bias));
  for (std::int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const X* const from = x + row * ld + col;
    auto v = load_floats<kWidth>(from);
    const auto up = load_floats<kWidth>(activate.up < 0 ? nullptr : from + activate.up);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      v.v[j] = activated(activate.activation, v.v[j] + bias.v[j]);
      if (activate.up >= 0) v.v[j] *= up.v[j] + up_bias.v[j];
    }
    store_floats(y + row * cols + col, v);
  }
}

template <int kWidth>
__global__ void bias_residual_kernel(const float* x, std::int64_t ld, const float* bias,
                                     std::int64_t rows, std::int64_t cols, float* residual) {
  wait_for_previous();
  const std::int64_t col =
      (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWidth;
  if (col >= cols) return;
  for (std::int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    float* const r = residual + row * cols + col;
    if constexpr (kWidth == 4) {
      const Four<float> v = *reinterpret_cast<const Four<float>*>(x + row * ld + col);
      Four<float> b{};
      if (bias != nullptr) b = *reinterpret_cast<const Four<float>*>(bias + col);
      Four<float> sum = *reinterpret_cast<const Four<float>*>(r);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum.v[j] += v.v[j] + b.v[j];
      *reinterpret_cast<Four<float>*>(r) = sum;
    } else {
      *r += bias == nullptr ? x[row * ld + col] : x[row * ld + col] + bias[col];
    }
  }
}

template <typename T, int kWidth>
__global__ void gather_rows_kernel(const T* x, const std::int32_t* rows, std::int64_t count,
                                   std::int64_t cols, float* out) {
  wait_for_previous();
  const std::int64_t col =
      (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWidth;
  if (col >= cols) return;
  for (std::int64_t i = blockIdx.y; i < count; i += gridDim.y) {
    const T* const from = x + static_cast<std::int64_t>(rows[i]) * cols + col;
    float* const to = out + i * cols + col;
    if constexpr (kWidth == 4) {
      const Four<T> v = *reinterpret_cast<const Four<T>*>(from);
      *reinterpret_cast<Four<float>*>(to) = {
          {to_float(v.v[0]), to_float(v.v[1]), to_float(v.v[2]), to_float(v.v[3])}};
    } else {
      *to = to_float(*from);
    }
  }
}

template <typename From, typename To>
__global__ void convert_kernel(const From* x, To* y, std::int64_t count) {
  wait_for_previous();
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    y[i] = from_float<To>(to_float(x[i]));
  }
}

/// Element i of the tensor is a quarter of the draw i / 4 (uniform_values.h).
template <typename Stored, typename To>
__global__ void fill_uniform_kernel(std::uint64_t key, float step, std::int64_t first,
                                    std::int64_t count, To* y) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  const std::int64_t first_draw = first / UniformValues::kPerDraw;
  const std::int64_t draws = (first + count - 1) / UniformValues::kPerDraw - first_draw + 1;
  for (std::int64_t d = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; d < draws;
       d += stride) {
    const std::uint64_t bits = mix64(key ^ static_cast<std::uint64_t>(first_draw + d));
#pragma unroll
    for (int j = 0; j < UniformValues::kPerDraw; ++j) {
      const std::int64_t at = (first_draw + d) * UniformValues::kPerDraw + j - first;
      if (at < 0 || at >= count) continue;
      const float value = UniformValues::value(bits, j, step);
      y[at] = from_float<To>(to_float(from_float<Stored>(value)));
    }
  }
}

/// (blocks of columns, rows): one thread a group of `width` columns.
dim3 grid_of(std::int64_t rows, std::int64_t cols, int width) {
  const std::int64_t groups = (cols + width - 1) / width;
  return {static_cast<unsigned>((groups + kElementThreads - 1) / kElementThreads),
          static_cast<unsigned>(std::min(rows, kMostGridY))};
}

template <typename T, typename X, int kWidth>
bool launch_activate(const X* x, std::int64_t ld, const Activate& activate, std::int64_t rows,
                     std::int64_t cols, T* y, cudaStream_t stream) {
  if (cols % kWidth != 0 || ld % kWidth != 0 || (activate.up >= 0 && activate.up % kWidth != 0) ||
      !is_aligned(x, kWidth * sizeof(X)) || !is_aligned(activate.bias, kWidth * sizeof(float)) ||
      !is_aligned(activate.up_bias, kWidth * sizeof(float)) || !is_aligned(y, kWidth * sizeof(T))) {
    return false;
  }
  launch_early(activate_kernel<T, X, kWidth>, grid_of(rows, cols, kWidth), kElementThreads, 0,
               stream, x, ld, activate, rows, cols, y);
  return true;
}

/// With accesses of x of 16 bytes where they can be.
template <typename T, typename X>
void launch_activate(const X* x, std::int64_t ld, const Activate& activate, std::int64_t rows,
                     std::int64_t cols, T* y, cudaStream_t stream) {
  constexpr int kMostWidth = 16 / sizeof(X);
  if (!launch_activate<T, X, kMostWidth>(x, ld, activate, rows, cols, y, stream)) {
    launch_activate<T, X, 1>(x, ld, activate, rows, cols, y, stream);
  }
}

/// Blocks for a walk over `count` elements.
unsigned blocks_of(std::int64_t count) {
  return static_cast<unsigned>(
      std::clamp<std::int64_t>((count + kElementThreads - 1) / kElementThreads, 1, 4096));
}

}  // namespace

void cuda_normalize(const float* x, const Norm& norm, std::int64_t rows, std::int64_t cols, void* y,
                    DType y_dtype, cudaStream_t stream) {
  normalize({x, cols, nullptr, nullptr}, norm, rows, cols, y, y_dtype, stream);
}

void cuda_bias_residual_norm(const float* x, std::int64_t ld, const float* bias, float* residual,
                             const Norm& norm, std::int64_t rows, std::int64_t cols, void* y,
                             DType y_dtype, cudaStream_t stream) {
  normalize({x, ld, bias, residual}, norm, rows, cols, y, y_dtype, stream);
}

void cuda_activate(const void* x, DType x_dtype, std::int64_t ld, const Activate& activate,
                   std::int64_t rows, std::int64_t cols, void* y, DType y_dtype,
                   cudaStream_t stream) {
  if (rows == 0) return;
  with_type(y_dtype, [&]<typename T>(T) {
    T* const out = static_cast<T*>(y);
    if (x_dtype == DType::kFloat32) {
      launch_activate(static_cast<const float*>(x), ld, activate, rows, cols, out, stream);
    } else {
      launch_activate(static_cast<const T*>(x), ld, activate, rows, cols, out, stream);
    }
  });
}

void cuda_bias_residual(const float* x, std::int64_t ld, const float* bias, std::int64_t rows,
                        std::int64_t cols, float* residual, cudaStream_t stream) {
  if (rows == 0) return;
  const bool vector = cols % 4 == 0 && ld % 4 == 0 && is_aligned(x, 16) && is_aligned(bias, 16) &&
                      is_aligned(residual, 16);
  if (vector) {
    launch_early(bias_residual_kernel<4>, grid_of(rows, cols, 4), kElementThreads, 0, stream, x, ld,
                 bias, rows, cols, residual);
  } else {
    launch_early(bias_residual_kernel<1>, grid_of(rows, cols, 1), kElementThreads, 0, stream, x, ld,
                 bias, rows, cols, residual);
  }
}

void cuda_gather_rows(const void* x, DType dtype, const std::int32_t* rows, std::int64_t count,
                      std::int64_t cols, float* out, cudaStream_t stream) {
  if (count == 0) return;
  with_type(dtype, [&]<typename T>(T) {
    const T* const from = static_cast<const T*>(x);
    if (cols % 4 == 0 && is_aligned(x, 4 * sizeof(T)) && is_aligned(out, 16)) {
      launch_early(gather_rows_kernel<T, 4>, grid_of(count, cols, 4), kElementThreads, 0, stream,
                   from, rows, count, cols, out);
    } else {
      launch_early(gather_rows_kernel<T, 1>, grid_of(count, cols, 1), kElementThreads, 0, stream,
                   from, rows, count, cols, out);
    }
  });
}

void cuda_convert(const void* x, DType from, void* y, DType to, std::int64_t count,
                  cudaStream_t stream) {
  if (count == 0) return;
  if (from == to) {
    if (x == y) return;
    ZI_CUDA(cudaMemcpyAsync(y, x, static_cast<std::size_t>(count) * size_of(from),
                            cudaMemcpyDeviceToDevice, stream));
    return;
  }
  with_type(from, [&]<typename From>(From) {
    with_type(to, [&]<typename To>(To) {
      launch_early(convert_kernel<From, To>, blocks_of(count), kElementThreads, 0, stream,
                   static_cast<const From*>(x), static_cast<To*>(y), count);
    });
  });
}

void cuda_fill_uniform(const UniformValues& values, std::int64_t first, std::int64_t count, void* y,
                       DType to, cudaStream_t stream) {
  if (count == 0) return;
  with_type(values.stored, [&]<typename Stored>(Stored) {
    with_type(to, [&]<typename To>(To) {
      fill_uniform_kernel<Stored><<<blocks_of(count / 4), kElementThreads, 0, stream>>>(
          values.key, values.step(), first, count, static_cast<To*>(y));
      ZI_CUDA_LAUNCHED();
    });
  });
}

}  // namespace zi
