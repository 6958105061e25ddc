#include <algorithm>

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
  const void* qkv;  // float32, or of the keys' type
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

/// One block for each row and kThreads * kPerThread of its columns of X, taken kWidth at a time.
template <typename T, typename X, int kWidth>
__global__ void __launch_bounds__(kThreads) interleaved_kernel(const InterleavedArgs a) {
  wait_for_previous();
  const auto row = static_cast<int>(blockIdx.x);
  const int columns = 3 * a.heads * a.head_dim;
  const int first = static_cast<int>(blockIdx.y * kThreads * kPerThread + threadIdx.x);
  const X* const in = static_cast<const X*>(a.qkv) + row * a.ld;
  Neighbours<float, kWidth> values[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int column = (first + i * kThreads) * kWidth;
    if (column >= columns) continue;
    values[i] = load_floats<kWidth>(in + column);
    if (a.bias == nullptr) continue;
    const auto bias = load_floats<kWidth>(a.bias + column);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[i].v[j] += bias.v[j];
  }
  // The loads above are under way while the row finds its sequence.
  const auto [page, slot] = find_row(a, row);
  if (page == nullptr) return;
  T* const in_page = reinterpret_cast<T*>(page);
  float* const q = a.q + static_cast<std::int64_t>(row) * a.heads * a.head_dim;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int column = (first + i * kThreads) * kWidth;
    if (column >= columns) break;
    const QkvColumn of(column, a.head_dim);
    if (of.part == 0) {
      store_floats(q + static_cast<std::int64_t>(of.head) * a.head_dim + of.dim, values[i]);
    } else {
      store_floats(in_page + place_in_page(of, slot, a.heads, a.head_dim), values[i]);
    }
  }
}

/// A head of a row, counted first over queries, then keys, then values.
struct Head {
  int part;  // q, k, v
  int index;
  const float* from;
  const float* bias;  // or null
  const float* norm;  // or null

  __device__ __forceinline__ static Head find(const SplitArgs& a, int row, int head) {
    int part = 0;
    for (; part < 2; ++part) {
      const int heads = part == 0 ? a.split.heads : a.kv_heads;
      if (head < heads) break;
      head -= heads;
    }
    const HeadColumns& columns = part == 0 ? a.split.q : part == 1 ? a.split.k : a.split.v;
    return {part, head, a.qkv + row * a.ld + columns.first + head * columns.step,
            columns.bias == nullptr ? nullptr : columns.bias + head * columns.step,
            part == 0   ? a.split.q_norm
            : part == 1 ? a.split.k_norm
                        : nullptr};
  }
};

/// Pairs of elements of a head that are rotated.
__device__ __forceinline__ int pairs_of(const SplitArgs& a) {
  return a.split.rotations == nullptr ? 0 : a.split.rotary / 2;
}
__device__ __forceinline__ const float2* rotations_of(const SplitArgs& a, int row) {
  return reinterpret_cast<const float2*>(a.split.rotations) +
         static_cast<std::int64_t>(row) * pairs_of(a);
}

__device__ __forceinline__ float* query_at(const SplitArgs& a, int row, int head) {
  return a.q + (static_cast<std::int64_t>(row) * a.split.heads + head) * a.head_dim;
}
/// Where a head that is no query goes.
template <typename T>
__device__ __forceinline__ T* in_page(const SplitArgs& a, const Head& of, const RowInPage& place) {
  const int before = of.index + (of.part == 2 ? a.kv_heads : 0);
  return reinterpret_cast<T*>(place.page) +
         (static_cast<std::int64_t>(before) * kKvPageTokens + place.slot) * a.head_dim;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
  return x;
}

/// What a warp does with a head. Lane l holds elements l, l + 32, .., kCount of them; what is
/// rotated together meets in `exchanged`. All loads are on their way before the first is waited
/// for.
template <typename T, int kCount>
__device__ inline void split_head(const SplitArgs& a, int row, int head, const RowInPage& place,
                                  float* exchanged) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const Head of = Head::find(a, row, head);
  const int pairs = of.part < 2 ? pairs_of(a) : 0;
  const float2* const rotations = rotations_of(a, row);

  float values[kCount];
  float2 turns[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int dim = i * 32 + lane;
    values[i] = dim < a.head_dim ? of.from[dim] : 0.0f;
    turns[i] = dim < 2 * pairs ? rotations[dim < pairs ? dim : dim - pairs] : make_float2(1, 0);
  }
  if (of.bias != nullptr) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int dim = i * 32 + lane;
      values[i] += dim < a.head_dim ? of.bias[dim] : 0.0f;
    }
  }
  if (of.norm != nullptr) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) squares += values[i] * values[i];
    const float scale =
        rsqrtf(warp_sum(squares) / static_cast<float>(a.head_dim) + a.split.norm_epsilon);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int dim = i * 32 + lane;
      values[i] *= dim < a.head_dim ? scale * of.norm[dim] : 0.0f;
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
  const auto store_all = [&]<typename To>(To* to) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i * 32 + lane < a.head_dim) to[i * 32 + lane] = from_float<To>(values[i]);
    }
  };
  if (of.part == 0) {
    store_all(query_at(a, row, of.index));
  } else {
    store_all(in_page<T>(a, of, place));
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

/// The same of heads of up to 128 elements, taken four at a time: lane l holds elements 4 l .. 4 l
/// + 3, and those that are rotated with them are pairs / 4 lanes away. A warp's first heads are on
/// their way while the row finds its page.
template <typename T>
__global__ void __launch_bounds__(kThreads) split_fours_kernel(const SplitArgs a) {
  constexpr int kAtOnce = 3;
  const auto row = static_cast<int>(blockIdx.x);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int dim = static_cast<int>(threadIdx.x) % 32 * 4;
  const bool has_elements = dim < a.head_dim;
  const int heads = a.split.heads + 2 * a.kv_heads;
  const int step = static_cast<int>(gridDim.y) * kWarps;
  const int first = static_cast<int>(blockIdx.y) * kWarps + warp;
  const int pairs = pairs_of(a);
  wait_for_previous();

  float4 cosines = make_float4(1, 1, 1, 1), sines = make_float4(0, 0, 0, 0);
  if (dim < 2 * pairs) {
    const bool second = dim >= pairs;
    const auto* const from =
        reinterpret_cast<const float4*>(rotations_of(a, row) + (second ? dim - pairs : dim));
    const float4 low = from[0], high = from[1];
    cosines = make_float4(low.x, low.z, high.x, high.z);
    sines = make_float4(low.y, low.w, high.y, high.w);
    if (!second) sines = make_float4(-sines.x, -sines.y, -sines.z, -sines.w);
  }
  const int partner = (dim < pairs ? dim + pairs : dim - pairs) / 4;

  float4 values[kAtOnce];
  const auto load = [&](int head) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int next = head + i * step;
      values[i] = make_float4(0, 0, 0, 0);
      if (next < heads && has_elements) values[i] = four_at(Head::find(a, row, next).from, dim);
    }
  };
  load(first);
  const RowInPage place = find_row(a, row);
  if (place.page == nullptr) return;
  for (int head = first; head < heads; head += kAtOnce * step) {
    if (head != first) load(head);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (head + i * step >= heads) break;
      const Head of = Head::find(a, row, head + i * step);
      float4 v = values[i];
      if (has_elements) v = add_four(v, four_at(of.bias, dim));
      if (of.norm != nullptr) {
        const float squares = warp_sum(v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w);
        const float scale = rsqrtf(squares / static_cast<float>(a.head_dim) + a.split.norm_epsilon);
        const float4 g = has_elements ? four_at(of.norm, dim) : make_float4(0, 0, 0, 0);
        v = make_float4(v.x * (scale * g.x), v.y * (scale * g.y), v.z * (scale * g.z),
                        v.w * (scale * g.w));
      }
      if (of.part < 2 && pairs > 0) {
        const auto with = [&](float x, float cosine, float sine) {
          return x * cosine + __shfl_sync(0xffffffffu, x, partner) * sine;
        };
        v = make_float4(with(v.x, cosines.x, sines.x), with(v.y, cosines.y, sines.y),
                        with(v.z, cosines.z, sines.z), with(v.w, cosines.w, sines.w));
      }
      if (!has_elements) continue;
      if (of.part == 0) {
        store_four(query_at(a, row, of.index) + dim, v);
      } else {
        store_four(in_page<T>(a, of, place) + dim, v);
      }
    }
  }
}

template <typename T, typename X, int kWidth>
bool launch_interleaved(const InterleavedArgs& args, int tokens, cudaStream_t stream) {
  if (args.head_dim % kWidth != 0 || args.ld % kWidth != 0 ||
      !is_aligned(args.qkv, kWidth * sizeof(X)) || !is_aligned(args.bias, kWidth * sizeof(float)) ||
      !is_aligned(args.q, kWidth * sizeof(float)) || !is_aligned(args.kv, kWidth * sizeof(T))) {
    return false;
  }
  const std::int64_t columns = std::int64_t{3} * args.heads * args.head_dim / kWidth;
  const dim3 grid(static_cast<unsigned>(tokens),
                  static_cast<unsigned>(ceil_div(columns, kThreads * kPerThread)));
  launch_early(interleaved_kernel<T, X, kWidth>, grid, kThreads, 0, stream, args);
  return true;
}

/// With accesses of the product of 16 bytes where they can be.
template <typename T, typename X>
void launch_interleaved(const InterleavedArgs& args, int tokens, cudaStream_t stream) {
  constexpr int kMostWidth = 16 / sizeof(X);
  if (!launch_interleaved<T, X, kMostWidth>(args, tokens, stream)) {
    launch_interleaved<T, X, 1>(args, tokens, stream);
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
  const QkvSplit& split = args.split;
  const auto in_fours = [](const HeadColumns& columns) {
    return columns.first % 4 == 0 && columns.step % 4 == 0 && is_aligned(columns.bias, 16);
  };
  const bool fours = args.head_dim <= 128 && args.head_dim % 4 == 0 && args.ld % 4 == 0 &&
                     split.rotary % 8 == 0 && in_fours(split.q) && in_fours(split.k) &&
                     in_fours(split.v) && is_aligned(args.qkv, 16) && is_aligned(args.q, 16) &&
                     is_aligned(split.q_norm, 16) && is_aligned(split.k_norm, 16) &&
                     is_aligned(split.rotations, 16) && is_aligned(args.kv, 4 * sizeof(T));
  launch(fours ? split_fours_kernel<T> : split_kernel<T, kMostHeadDim / 32>);
}

BatchArgs args_of(const RaggedBatch& batch, const KvLayer& kv) {
  return {batch.row_begin, batch.context, batch.block_tables, batch.sequences,
          batch.max_pages, kv.data,       kv.page_bytes()};
}

}  // namespace

void cuda_split_qkv(const float* qkv, std::int64_t ld, const QkvSplit& split,
                    const RaggedBatch& batch, const KvLayer& kv, float* q, cudaStream_t stream) {
  if (batch.tokens == 0 || batch.sequences == 0) return;
  const BatchArgs rows = args_of(batch, kv);
  with_type(kv.dtype, [&]<typename T>(T) {
    if (is_interleaved(split, kv)) {
      launch_interleaved<T, float>({rows, qkv, ld, split.q.bias, kv.heads, kv.head_dim, q},
                                   batch.tokens, stream);
    } else {
      launch_split<T>({rows, qkv, ld, split, kv.heads, kv.head_dim, q}, batch.tokens, stream);
    }
  });
}

void cuda_split_rounded_qkv(const void* qkv, std::int64_t ld, const RaggedBatch& batch,
                            const KvLayer& kv, float* q, cudaStream_t stream) {
  if (batch.tokens == 0 || batch.sequences == 0) return;
  with_type(kv.dtype, [&]<typename T>(T) {
    launch_interleaved<T, T>({args_of(batch, kv), qkv, ld, nullptr, kv.heads, kv.head_dim, q},
                             batch.tokens, stream);
  });
}

}  // namespace zi
