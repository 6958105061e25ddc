#include <algorithm>
#include <bit>

#include "backend/cuda/cuda_attention_kernels.cuh"
#include "backend/cuda/cuda_attention_mma.cuh"
#include "backend/cuda/cuda_support.h"
#include "backend/cuda/launch.cuh"
#include "zero_infer/bytes.h"

/// Attention of one query over the keys of its sequence. All keys and values pass through the chip
/// once, so memory sets the time: lanes load 16 bytes each, a whole page of K and V at a time for
/// each warp. A short batch would leave most multiprocessors idle, so its keys are also divided
/// among blocks, which leave partial results for a second kernel (flash-decoding, Dao et al. 2023).
///
/// Launch geometry follows from the number of queries and from their longest context rounded up to
/// a power of two. The kernels read contexts in device memory, so that a captured graph stays right
/// while contexts grow up to that bound.
namespace zi {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocksPerMultiprocessor = 4;  // that registers leave room for
constexpr int kMaxSplits = 128;
constexpr unsigned kAllLanes = 0xffffffffu;

/// A row that is a query, the only one of its sequence or any, and how many keys it sees: none if
/// there is no such row. Called by all threads of a block together.
struct Query {
  int row;
  int sequence;
  int keys;
};

__device__ inline Query find_query(const AttentionArgs& a, bool by_row, int index) {
  if (by_row) {
    const int sequence = sequence_of_row(a.row_begin, a.sequences, index);
    if (sequence >= a.sequences) return {index, sequence, 0};
    return {index, sequence, a.context[sequence] - a.row_begin[sequence + 1] + index + 1};
  }
  // Three loads at once.
  const int row = a.row_begin[index];
  const int end = a.row_begin[index + 1];
  const int keys = a.context[index];
  return {row, index, end - row == 1 ? keys : 0};
}

/// kGroup lanes share a key; each holds kChunks times kWidth elements of head_dim, kGroup * kWidth
/// apart. The groups of all warps take different keys, each with a softmax of its own; they are
/// merged at the end. Keys from a row's limit on are not read. With `warp_heads` each warp has a
/// head to itself, and keys are not split.
template <typename T, int kWidth, int kGroup, int kChunks>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    decode_kernel(const AttentionArgs a, const bool by_row, const bool warp_heads,
                  const Partials partials) {
  constexpr int kGroups = 32 / kGroup;
  constexpr int kKeys = kChunks == 1 ? std::min(kGroup / 2, 8) : 8 / kChunks > 2 ? 8 / kChunks : 2;
  constexpr int kWarpKeys = kGroups * kKeys;  // never more than a page, of which they are a part
  constexpr int kBlockKeys = kWarps * kWarpKeys;
  static_assert(kKvPageTokens % kWarpKeys == 0);
  constexpr int kElements = kChunks * kWidth;
  using Load = Word<kWidth * sizeof(T)>;
  __shared__ float shared_sum[kWarps][kGroup * kElements];
  __shared__ float shared_maximum[kWarps];
  __shared__ float shared_total[kWarps];

  let_next_start();
  const int query = static_cast<int>(blockIdx.x);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int head =
      static_cast<int>(blockIdx.y) * (warp_heads ? kWarps : 1) + (warp_heads ? warp : 0);
  const int split = static_cast<int>(blockIdx.z);
  const int splits = static_cast<int>(gridDim.z);
  // The batch's tables and the slopes, which no kernel writes, are read while earlier kernels may
  // still run.
  const auto [row, sequence, keys] = find_query(a, by_row, query);
  if (keys == 0 || head >= a.heads) {
    wait_for_previous();  // kernels after this one rely on it
    return;
  }
  const std::int64_t slot = (static_cast<std::int64_t>(query) * a.heads + head) * splits + split;
  const int per_split = ((keys + splits - 1) / splits + kBlockKeys - 1) / kBlockKeys * kBlockKeys;
  const int first = split * per_split;
  const int last = min(keys, first + per_split);
  if (first >= last) {
    wait_for_previous();
    if (splits > 1 && threadIdx.x == 0) partials.totals[slot] = make_float2(-INFINITY, 0.0f);
    return;
  }

  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int group = lane / kGroup;
  const int member = lane % kGroup;
  const std::int64_t column =
      (static_cast<std::int64_t>(row) * a.heads + head) * a.head_dim;  // in q and out
  const float scale = kLog2E * rsqrtf(static_cast<float>(a.head_dim));
  // Relative to the row's own position, which softmax does not see, so that near keys, which weigh
  // most, carry the smallest rounding.
  const float slope = a.slopes == nullptr ? 0.0f : a.slopes[head] * kLog2E;
  const std::size_t row_bytes = static_cast<std::size_t>(a.head_dim) * sizeof(T);
  const std::byte* const own =
      a.kv + static_cast<std::size_t>(head / a.group) * kKvPageTokens * row_bytes +
      static_cast<std::size_t>(member) * sizeof(Load);
  const std::uint32_t half_page = a.page_bytes / 2;
  const std::int32_t* const table =
      a.block_tables + static_cast<std::int64_t>(sequence) * a.max_pages;
  const int stride = warp_heads ? kWarpKeys : kBlockKeys;
  int key = first + (warp_heads ? 0 : warp * kWarpKeys);
  std::int32_t page = key < last ? table[key / kKvPageTokens] : 0;
  wait_for_previous();

  float q[kElements];
  float sum[kElements];
  bool mine[kChunks];
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int dim = (c * kGroup + member) * kWidth;
    mine[c] = dim < a.head_dim;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      q[c * kWidth + i] = mine[c] ? a.q[column + dim + i] * scale : 0.0f;
      sum[c * kWidth + i] = 0.0f;
    }
  }
  float maximum = -INFINITY;
  float total = 0.0f;

  for (; key < last; key += stride) {
    const std::byte* const rows = own + page_offset(a, page) +
                                  static_cast<std::size_t>(key % kKvPageTokens + group) * row_bytes;
    const int next = key + stride;
    if (next < last) page = table[next / kKvPageTokens];
    Load k[kKeys][kChunks];
    Load v[kKeys][kChunks];
#pragma unroll
    for (int u = 0; u < kKeys; ++u) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const bool there = mine[c] && key + u * kGroups + group < last;
        const std::byte* const at = rows + u * kGroups * row_bytes + c * kGroup * sizeof(Load);
        k[u][c] = there ? *reinterpret_cast<const Load*>(at) : Load{};
        v[u][c] = there ? *reinterpret_cast<const Load*>(at + half_page) : Load{};
      }
    }
    float weights[kKeys];
#pragma unroll
    for (int u = 0; u < kKeys; ++u) {
      weights[u] = 0.0f;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        float values[kWidth];
        unpack_word<T, kWidth>(k[u][c], values);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          weights[u] = fmaf(q[c * kWidth + i], values[i], weights[u]);
        }
      }
    }
#pragma unroll
    for (int lanes = kGroup / 2; lanes > 0; lanes /= 2) {
#pragma unroll
      for (int u = 0; u < kKeys; ++u) {
        weights[u] += __shfl_xor_sync(kAllLanes, weights[u], lanes);
      }
    }
    float best = maximum;
#pragma unroll
    for (int u = 0; u < kKeys; ++u) {
      const int position = key + u * kGroups + group;
      weights[u] = position < last
                       ? fmaf(slope, static_cast<float>(position - (keys - 1)), weights[u])
                       : -INFINITY;
      best = fmaxf(best, weights[u]);
    }
    const float reference = reference_of(best);
    const float fade = ptx::exp2(maximum - reference);
    maximum = best;
    total *= fade;
#pragma unroll
    for (int i = 0; i < kElements; ++i) sum[i] *= fade;
#pragma unroll
    for (int u = 0; u < kKeys; ++u) {
      const float weight = ptx::exp2(weights[u] - reference);
      total += weight;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        float values[kWidth];
        unpack_word<T, kWidth>(v[u][c], values);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          sum[c * kWidth + i] = fmaf(weight, values[i], sum[c * kWidth + i]);
        }
      }
    }
  }

#pragma unroll
  for (int lanes = kGroup; lanes < 32; lanes *= 2) {  // the groups of a warp
    const float other_maximum = __shfl_xor_sync(kAllLanes, maximum, lanes);
    const float other_total = __shfl_xor_sync(kAllLanes, total, lanes);
    const float best = fmaxf(maximum, other_maximum);
    const float fade = ptx::exp2(maximum - reference_of(best));
    const float other_fade = ptx::exp2(other_maximum - reference_of(best));
    maximum = best;
    total = total * fade + other_total * other_fade;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const float other = __shfl_xor_sync(kAllLanes, sum[i], lanes);
      sum[i] = sum[i] * fade + other * other_fade;
    }
  }
  if (group == 0) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        shared_sum[warp][(c * kGroup + member) * kWidth + i] = sum[c * kWidth + i];
      }
    }
    if (member == 0) {
      shared_maximum[warp] = maximum;
      shared_total[warp] = total;
    }
  }
  if (warp_heads) {
    __syncwarp();
    for (int dim = lane; dim < a.head_dim; dim += 32) {
      store_as(a.out, a.out_dtype, column + dim, shared_sum[warp][dim] / total);
    }
    return;
  }
  __syncthreads();
  float best = shared_maximum[0];  // warp 0 has a key if any has
#pragma unroll
  for (int w = 1; w < kWarps; ++w) best = fmaxf(best, shared_maximum[w]);
  float fades[kWarps];
  float all = 0.0f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    fades[w] = ptx::exp2(shared_maximum[w] - best);
    all += fades[w] * shared_total[w];
  }
  for (int dim = static_cast<int>(threadIdx.x); dim < a.head_dim; dim += kThreads) {
    float result = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) result += fades[w] * shared_sum[w][dim];
    if (splits == 1) {
      store_as(a.out, a.out_dtype, column + dim, result / all);
    } else {
      partials.sums[slot * a.head_dim + dim] = result;
    }
  }
  if (splits > 1 && threadIdx.x == 0) partials.totals[slot] = make_float2(best, all);
}

/// Merges the partial results of each query and head: one block for each.
__global__ void __launch_bounds__(kThreads)
    combine_kernel(const AttentionArgs a, const bool by_row, const int splits,
                   const Partials partials) {
  __shared__ float weights[kMaxSplits];
  wait_for_previous();
  const int query = static_cast<int>(blockIdx.x);
  const int head = static_cast<int>(blockIdx.y);
  const auto [row, sequence, keys] = find_query(a, by_row, query);
  if (keys == 0) return;
  const std::int64_t slot = (static_cast<std::int64_t>(query) * a.heads + head) * splits;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // Each warp does the same sums, so that one barrier is enough.
  float best = -INFINITY;
  for (int s = lane; s < splits; s += 32) best = fmaxf(best, partials.totals[slot + s].x);
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, lanes));
  }
  float all = 0.0f;
  for (int s = lane; s < splits; s += 32) {
    const float2 total = partials.totals[slot + s];
    const float weight = ptx::exp2(total.x - reference_of(best));
    all += weight * total.y;
    if (threadIdx.x < 32) weights[s] = weight;
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) all += __shfl_xor_sync(kAllLanes, all, lanes);
  __syncthreads();
  const std::int64_t column = (static_cast<std::int64_t>(row) * a.heads + head) * a.head_dim;
  for (int dim = static_cast<int>(threadIdx.x); dim < a.head_dim; dim += kThreads) {
    float result = 0.0f;
#pragma unroll 8
    for (int s = 0; s < splits; ++s) {
      // A split without keys has no sum, only what was in memory.
      const float weight = weights[s];
      if (weight != 0.0f) result += weight * partials.sums[(slot + s) * a.head_dim + dim];
    }
    store_as(a.out, a.out_dtype, column + dim, result / all);
  }
}

/// Blocks that the device holds at once.
int resident_blocks() {
  static const int multiprocessors = [] {
    int device = 0;
    int count = 0;
    ZI_CUDA(cudaGetDevice(&device));
    ZI_CUDA(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    return count;
  }();
  return multiprocessors * kBlocksPerMultiprocessor;
}

/// Whether a warp is enough for the few keys of a head: where there are more heads than two rounds
/// of blocks, so that keys are not split.
bool use_warp_heads(const AttentionArgs& args, const DecodeShape& shape) {
  constexpr std::uint32_t kMostContext = 256;
  return std::bit_ceil(static_cast<std::uint32_t>(std::max(shape.longest, 1))) <= kMostContext &&
         static_cast<std::int64_t>(shape.active) * args.heads >= 2 * resident_blocks();
}

template <typename T, int kWidth, int kGroup, int kChunks>
void launch(const AttentionArgs& args, const DecodeShape& shape, int splits,
            const Partials& partials, cudaStream_t stream) {
  const bool warp_heads = use_warp_heads(args, shape);
  const int heads = warp_heads ? (args.heads + kWarps - 1) / kWarps : args.heads;
  const dim3 grid(static_cast<unsigned>(shape.queries), static_cast<unsigned>(heads),
                  static_cast<unsigned>(splits));
  launch_early(decode_kernel<T, kWidth, kGroup, kChunks>, grid, kThreads, 0, stream, args,
               shape.by_row, warp_heads, partials);
}

/// The fewest lanes that hold head_dim; rows that do not start at multiples of 16 bytes are read
/// element by element.
template <typename T>
void launch_type(const AttentionArgs& args, const DecodeShape& shape, int splits,
                 const Partials& partials, cudaStream_t stream) {
  constexpr int kWidth = 16 / sizeof(T);
  const int lanes = (args.head_dim + kWidth - 1) / kWidth;
  if (args.head_dim % kWidth != 0 || !is_aligned(args.kv, 16)) {
    launch<T, 1, 32, 8>(args, shape, splits, partials, stream);
  } else if (lanes <= 8) {
    launch<T, kWidth, 8, 1>(args, shape, splits, partials, stream);
  } else if (lanes <= 16) {
    launch<T, kWidth, 16, 1>(args, shape, splits, partials, stream);
  } else if (lanes <= 32) {
    launch<T, kWidth, 32, 1>(args, shape, splits, partials, stream);
  } else if constexpr (sizeof(T) == 4) {
    launch<T, kWidth, 32, 2>(args, shape, splits, partials, stream);
  }
}

}  // namespace

void launch_attention_decode(const AttentionArgs& args, DType kv_dtype, const DecodeShape& shape,
                             std::span<std::byte> scratch, cudaStream_t stream) {
  const SplitChoice choice{
      .blocks = static_cast<std::int64_t>(std::max(shape.active, 1)) * args.heads,
      .resident = resident_blocks(),
      .fewest_keys = 128};
  const int splits = choose_splits(args, shape, choice, scratch);
  const Partials partials = partials_in(scratch, args, shape, splits);
  with_type(kv_dtype, [&](auto element) {
    launch_type<decltype(element)>(args, shape, splits, partials, stream);
  });
  if (splits > 1) launch_attention_combine(args, shape, splits, partials, stream);
}

int choose_splits(const AttentionArgs& args, const DecodeShape& shape, const SplitChoice& choice,
                  std::span<std::byte> scratch) {
  constexpr std::int64_t kLeastContext = 512;  // to be split: below, the second kernel costs more
  const auto keys = static_cast<std::int64_t>(
      std::bit_ceil(static_cast<std::uint32_t>(std::max(shape.longest, 1))));
  if (keys < kLeastContext) return 1;
  const std::size_t bytes =
      static_cast<std::size_t>(shape.queries) * static_cast<std::size_t>(args.heads) *
      (sizeof(float2) + sizeof(float) * static_cast<std::size_t>(args.head_dim));
  const std::int64_t splits =
      std::min({ceil_div(choice.rounds * choice.resident, choice.blocks), keys / choice.fewest_keys,
                static_cast<std::int64_t>(scratch.size() / bytes), std::int64_t{kMaxSplits}});
  return static_cast<int>(std::max(splits, std::int64_t{1}));
}

Partials partials_in(std::span<std::byte> scratch, const AttentionArgs& args,
                     const DecodeShape& shape, int splits) {
  auto* const totals = reinterpret_cast<float2*>(scratch.data());
  const auto count = static_cast<std::int64_t>(shape.queries) * args.heads * splits;
  return {totals, reinterpret_cast<float*>(totals + count)};
}

void launch_attention_combine(const AttentionArgs& args, const DecodeShape& shape, int splits,
                              const Partials& partials, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(shape.queries), static_cast<unsigned>(args.heads));
  launch_early(combine_kernel, grid, kThreads, 0, stream, args, shape.by_row, splits, partials);
}

}  // namespace zi
