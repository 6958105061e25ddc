#include <algorithm>
#include <type_traits>

#include "backend/cuda/cuda_attention.h"
#include "backend/cuda/cuda_attention_kernels.cuh"
#include "backend/cuda/cuda_support.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/product_output.h"
#include "zero_infer/bytes.h"

namespace zi {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kPerThread = 4;  // loads in flight

struct BatchArgs {
  const std::int32_t* row_begin;
  const std::int32_t* context;
  const std::int32_t* block_tables;
  int sequences;
  int max_pages;
  std::byte* kv;
  std::size_t page_bytes;
};

/// Columns (heads, 3, head_dim) without norms and rotations.
struct InterleavedArgs : BatchArgs {
  const float* qkv;
  std::int64_t ld;
  const float* bias;  // or null
  int heads;
  int head_dim;
  float* q;
};

struct SplitArgs : BatchArgs {
  const float* qkv;
  std::int64_t ld;
  QkvSplit split;
  int kv_heads;
  int head_dim;
  float* q;
};

template <int kWidth>
using Floats = std::conditional_t<kWidth == 4, float4, float>;

__device__ inline float add(float a, float b) { return a + b; }
__device__ inline float4 add(float4 a, float4 b) { return add_four(a, b); }

/// Where a row's keys and values go. Called by all threads of a block together; null for a row that
/// no sequence owns.
struct RowInPage {
  std::byte* page;
  int slot;
};

__device__ inline RowInPage find_row(const BatchArgs& a, int row) {
  const int sequence = sequence_of_row(a.row_begin, a.sequences, row);
  if (sequence >= a.sequences) return {nullptr, 0};
  const int position = a.context[sequence] - a.row_begin[sequence + 1] + row;
  const std::int32_t page =
      a.block_tables[static_cast<std::int64_t>(sequence) * a.max_pages + position / kKvPageTokens];
  return {a.kv + static_cast<std::size_t>(page) * a.page_bytes, position % kKvPageTokens};
}

template <typename T>
__device__ inline void store(T* at, float value) {
  *at = from_float<T>(value);
}

template <typename T>
__device__ inline void store(T* at, float4 value) {
  store_four(at, value);
}

/// One block for each row and kThreads * kPerThread of its columns, taken kWidth at a time.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads) interleaved_kernel(const InterleavedArgs a) {
  wait_for_previous();
  const auto row = static_cast<int>(blockIdx.x);
  const int columns = 3 * a.heads * a.head_dim / kWidth;
  const int first = static_cast<int>(blockIdx.y * kThreads * kPerThread + threadIdx.x);
  const auto* const in = reinterpret_cast<const Floats<kWidth>*>(a.qkv + row * a.ld);
  const auto* const bias = reinterpret_cast<const Floats<kWidth>*>(a.bias);
  Floats<kWidth> values[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int column = first + i * kThreads;
    if (column >= columns) continue;
    values[i] = a.bias == nullptr ? in[column] : add(in[column], bias[column]);
  }
  // The loads above are under way while the row finds its sequence.
  const auto [page, slot] = find_row(a, row);
  if (page == nullptr) return;
  T* const in_page = reinterpret_cast<T*>(page);
  float* const q = a.q + static_cast<std::int64_t>(row) * a.heads * a.head_dim;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int column = first + i * kThreads;
    if (column >= columns) break;
    const QkvColumn of(column * kWidth, a.head_dim);
    if (of.part == 0) {
      store(q + static_cast<std::int64_t>(of.head) * a.head_dim + of.dim, values[i]);
    } else {
      store(in_page + place_in_page(of, slot, a.heads, a.head_dim), values[i]);
    }
  }
}

/// What a warp does with a head of a row, counted first over queries, then keys, then values. Lane
/// l holds elements l, l + 32, .., kCount of them; what is rotated together meets in `exchanged`.
/// All loads are on their way before the first is waited for.
template <typename T, int kCount>
__device__ inline void split_head(const SplitArgs& a, int row, int head, const RowInPage& place,
                                  float* exchanged) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int part = 0;  // q, k, v
  for (; part < 2; ++part) {
    const int heads = part == 0 ? a.split.heads : a.kv_heads;
    if (head < heads) break;
    head -= heads;
  }
  const HeadColumns& columns = part == 0 ? a.split.q : part == 1 ? a.split.k : a.split.v;
  const float* const norm = part == 0 ? a.split.q_norm : part == 1 ? a.split.k_norm : nullptr;
  const float* const from = a.qkv + row * a.ld + columns.first + head * columns.step + lane;
  const float* const bias =
      columns.bias == nullptr ? nullptr : columns.bias + head * columns.step + lane;
  const int pairs = part < 2 && a.split.rotations != nullptr ? a.split.rotary / 2 : 0;
  const auto* const rotations =
      reinterpret_cast<const float2*>(a.split.rotations) + static_cast<std::int64_t>(row) * pairs;

  float values[kCount];
  float2 turns[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int dim = i * 32 + lane;
    values[i] = dim < a.head_dim ? from[i * 32] : 0.0f;
    turns[i] = dim < 2 * pairs ? rotations[dim < pairs ? dim : dim - pairs] : make_float2(1, 0);
  }
  if (bias != nullptr) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] += i * 32 + lane < a.head_dim ? bias[i * 32] : 0.0f;
  }
  if (norm != nullptr) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) squares += values[i] * values[i];
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      squares += __shfl_xor_sync(0xffffffffu, squares, lanes);
    }
    const float scale = rsqrtf(squares / static_cast<float>(a.head_dim) + a.split.norm_epsilon);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int dim = i * 32 + lane;
      values[i] *= dim < a.head_dim ? scale * norm[dim] : 0.0f;
    }
  }
  if (pairs > 0) {
    __syncwarp();  // the head before is read
#pragma unroll
    for (int i = 0; i < kCount; ++i) exchanged[i * 32 + lane] = values[i];
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int dim = i * 32 + lane;
      if (dim >= 2 * pairs) continue;
      const bool second = dim >= pairs;
      const float partner = exchanged[second ? dim - pairs : dim + pairs];
      values[i] = values[i] * turns[i].x + (second ? partner : -partner) * turns[i].y;
    }
  }
  if (part == 0) {
    float* const q = a.q + (static_cast<std::int64_t>(row) * a.split.heads + head) * a.head_dim;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i * 32 + lane < a.head_dim) q[i * 32 + lane] = values[i];
    }
    return;
  }
  const int before = head + (part == 2 ? a.kv_heads : 0);
  T* const to = reinterpret_cast<T*>(place.page) +
                (static_cast<std::int64_t>(before) * kKvPageTokens + place.slot) * a.head_dim;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i * 32 + lane < a.head_dim) to[i * 32 + lane] = from_float<T>(values[i]);
  }
}

/// Blocks for each row, whose warps take its heads in turn.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads) split_kernel(const SplitArgs a) {
  __shared__ float exchanged[kWarps][kCount * 32];
  wait_for_previous();
  const auto row = static_cast<int>(blockIdx.x);
  const RowInPage place = find_row(a, row);
  if (place.page == nullptr) return;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int heads = a.split.heads + 2 * a.kv_heads;
  const int step = static_cast<int>(gridDim.y) * kWarps;
  for (int head = static_cast<int>(blockIdx.y) * kWarps + warp; head < heads; head += step) {
    split_head<T, kCount>(a, row, head, place, exchanged[warp]);
  }
}

template <typename T>
void launch_interleaved(const InterleavedArgs& args, int tokens, cudaStream_t stream) {
  const bool four = args.head_dim % 4 == 0 && args.ld % 4 == 0 && is_aligned(args.qkv, 16) &&
                    is_aligned(args.bias, 16) && is_aligned(args.q, 16) &&
                    is_aligned(args.kv, 4 * sizeof(T));
  const std::int64_t columns = std::int64_t{3} * args.heads * args.head_dim / (four ? 4 : 1);
  const dim3 grid(static_cast<unsigned>(tokens),
                  static_cast<unsigned>(ceil_div(columns, kThreads * kPerThread)));
  if (four) {
    launch_early(interleaved_kernel<T, 4>, grid, kThreads, 0, stream, args);
  } else {
    launch_early(interleaved_kernel<T, 1>, grid, kThreads, 0, stream, args);
  }
}

template <typename T>
void launch_split(const SplitArgs& args, int tokens, cudaStream_t stream) {
  // Finding the row's page takes longer than a head: with many rows a block has all heads of one.
  constexpr int kManyRows = 2048;
  const int heads = args.split.heads + 2 * args.kv_heads;
  const int blocks = std::clamp(kManyRows / tokens, 1, (heads + kWarps - 1) / kWarps);
  const dim3 grid(static_cast<unsigned>(tokens), static_cast<unsigned>(blocks));
  const auto launch = [&](void (*kernel)(SplitArgs)) {
    launch_early(kernel, grid, kThreads, 0, stream, args);
  };
  if (args.head_dim <= 64) {
    launch(split_kernel<T, 2>);
  } else if (args.head_dim <= 128) {
    launch(split_kernel<T, 4>);
  } else {
    launch(split_kernel<T, kMostHeadDim / 32>);
  }
}

}  // namespace

void cuda_split_qkv(const float* qkv, std::int64_t ld, const QkvSplit& split,
                    const RaggedBatch& batch, const KvLayer& kv, float* q, cudaStream_t stream) {
  if (batch.tokens == 0 || batch.sequences == 0) return;
  const BatchArgs rows = {batch.row_begin, batch.context, batch.block_tables, batch.sequences,
                          batch.max_pages, kv.data,       kv.page_bytes()};
  with_type(kv.dtype, [&]<typename T>(T) {
    if (is_interleaved(split, kv)) {
      launch_interleaved<T>({rows, qkv, ld, split.q.bias, kv.heads, kv.head_dim, q}, batch.tokens,
                            stream);
    } else {
      launch_split<T>({rows, qkv, ld, split, kv.heads, kv.head_dim, q}, batch.tokens, stream);
    }
  });
}

}  // namespace zi
