#include <algorithm>

#include "backend/cuda/cuda_attention_kernels.cuh"
#include "backend/cuda/cuda_attention_mma.cuh"
#include "backend/cuda/cuda_attention_shares.cuh"
#include "backend/cuda/cuda_support.h"
#include "backend/cuda/launch.cuh"

/// Attention of one query over the keys of its sequence. All keys and values pass through the chip
/// once, so memory sets the time: lanes load 16 bytes each, a whole page of K and V at a time for
/// each warp. Keys are divided among the warps of a block, and where contexts are long among blocks
/// (cuda_attention_shares.cuh), each with a softmax of its own; results are merged (flash-decoding,
/// Dao et al. 2023).
///
/// Launch geometry follows from the number of queries and from their longest context rounded up to
/// a power of two. The kernels read contexts in device memory, so that a captured graph stays right
/// while contexts grow up to that bound.
namespace zi {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocksPerMultiprocessor = 4;  // that registers leave room for
constexpr unsigned kAllLanes = 0xffffffffu;

/// How a warp takes keys: kGroup lanes share a key; each holds kChunks times kWidth elements of
/// head_dim, kGroup * kWidth apart. The groups of all warps take different keys.
template <typename T, int kWidth_, int kGroup_, int kChunks_>
struct DecodeTile {
  using Element = T;
  using Load = Word<kWidth_ * sizeof(T)>;
  static constexpr int kWidth = kWidth_;
  static constexpr int kGroup = kGroup_;
  static constexpr int kChunks = kChunks_;
  static constexpr int kGroups = 32 / kGroup;
  static constexpr int kKeys =  // of a lane at a time
      kChunks == 1      ? std::min(kGroup / 2, 8)
      : 8 / kChunks > 2 ? 8 / kChunks
                        : 2;
  static constexpr int kWarpKeys = kGroups * kKeys;
  static constexpr int kBlockKeys = kWarps * kWarpKeys;
  static_assert(kKvPageTokens % kWarpKeys == 0);  // never more than a page
  static_assert(kUnitKeys % kBlockKeys == 0);
  static constexpr int kElements = kChunks * kWidth;
  static constexpr int kDims = kGroup * kElements;
};

/// What the warps of a block leave to each other.
template <int kDims>
struct WarpResults {
  float sum[kWarps][kDims];
  float maximum[kWarps];
  float total[kWarps];
};

/// What that becomes: a weight for each warp's sums, and their own sum.
struct WarpWeights {
  template <int kDims>
  __device__ explicit WarpWeights(const WarpResults<kDims>& results) : best(results.maximum[0]) {
#pragma unroll
    for (int w = 1; w < kWarps; ++w) best = fmaxf(best, results.maximum[w]);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      weights[w] = ptx::exp2(results.maximum[w] - reference_of(best));
      total += weights[w] * results.total[w];
    }
  }
  template <int kDims>
  __device__ float sum(const WarpResults<kDims>& results, int dim) const {
    float result = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) result += weights[w] * results.sum[w][dim];
    return result;
  }
  float best;  // score
  float total = 0.0f;
  float weights[kWarps];
};

/// Every `stride` keys from `key` on up to the segment's last. Keys from there on are not read.
template <typename Tile>
__device__ __forceinline__ void attend(const AttentionArgs& a, const Segment& segment, int head,
                                       int key, int stride, Running<Tile::kElements>& running) {
  using T = typename Tile::Element;
  using Load = typename Tile::Load;
  constexpr int kWidth = Tile::kWidth;
  constexpr int kGroup = Tile::kGroup;
  constexpr int kGroups = Tile::kGroups;
  constexpr int kChunks = Tile::kChunks;
  constexpr int kKeys = Tile::kKeys;
  constexpr int kElements = Tile::kElements;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int group = lane / kGroup;
  const int member = lane % kGroup;
  const int last = segment.last;
  const int own_position = segment.keys - 1;
  const std::int64_t column =
      (static_cast<std::int64_t>(segment.row) * a.heads + head) * a.head_dim;
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
      a.block_tables + static_cast<std::int64_t>(segment.sequence) * a.max_pages;
  std::int32_t page = key < last ? table[key / kKvPageTokens] : 0;
  // The batch's tables and the slopes, which no kernel writes, are read while earlier kernels may
  // still run.
  wait_for_previous();

  float q[kElements];
  bool mine[kChunks];
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int dim = (c * kGroup + member) * kWidth;
    mine[c] = dim < a.head_dim;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      q[c * kWidth + i] = mine[c] ? a.q[column + dim + i] * scale : 0.0f;
    }
  }

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
    float best = running.maximum;
#pragma unroll
    for (int u = 0; u < kKeys; ++u) {
      const int position = key + u * kGroups + group;
      weights[u] = position < last
                       ? fmaf(slope, static_cast<float>(position - own_position), weights[u])
                       : -INFINITY;
      best = fmaxf(best, weights[u]);
    }
    const float reference = reference_of(best);
    const float fade = ptx::exp2(running.maximum - reference);
    running.maximum = best;
    running.total *= fade;
#pragma unroll
    for (int i = 0; i < kElements; ++i) running.sum[i] *= fade;
#pragma unroll
    for (int u = 0; u < kKeys; ++u) {
      const float weight = ptx::exp2(weights[u] - reference);
      running.total += weight;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        float values[kWidth];
        unpack_word<T, kWidth>(v[u][c], values);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          float& sum = running.sum[c * kWidth + i];
          sum = fmaf(weight, values[i], sum);
        }
      }
    }
  }
}

/// Merges what the groups of a warp have.
template <typename Tile>
__device__ __forceinline__ void merge_groups(Running<Tile::kElements>& running) {
#pragma unroll
  for (int lanes = Tile::kGroup; lanes < 32; lanes *= 2) {
    const float other_maximum = __shfl_xor_sync(kAllLanes, running.maximum, lanes);
    const float other_total = __shfl_xor_sync(kAllLanes, running.total, lanes);
    const float best = fmaxf(running.maximum, other_maximum);
    const float fade = ptx::exp2(running.maximum - reference_of(best));
    const float other_fade = ptx::exp2(other_maximum - reference_of(best));
    running.maximum = best;
    running.total = running.total * fade + other_total * other_fade;
#pragma unroll
    for (int i = 0; i < Tile::kElements; ++i) {
      const float other = __shfl_xor_sync(kAllLanes, running.sum[i], lanes);
      running.sum[i] = running.sum[i] * fade + other * other_fade;
    }
  }
}

template <typename Tile>
__device__ __forceinline__ void leave_result(const Running<Tile::kElements>& running,
                                             WarpResults<Tile::kDims>& results) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int member = lane % Tile::kGroup;
  if (lane >= Tile::kGroup) return;
#pragma unroll
  for (int c = 0; c < Tile::kChunks; ++c) {
#pragma unroll
    for (int i = 0; i < Tile::kWidth; ++i) {
      results.sum[warp][(c * Tile::kGroup + member) * Tile::kWidth + i] =
          running.sum[c * Tile::kWidth + i];
    }
  }
  if (member == 0) {
    results.maximum[warp] = running.maximum;
    results.total[warp] = running.total;
  }
}

/// Merges what the warps of the block have to the row's result for a head, or to a piece of it; the
/// last block with a piece then merges all of them.
template <int kDims>
__device__ __forceinline__ void finish(const AttentionArgs& a, WorkShare& share,
                                       const Partials& partials, WarpResults<kDims>& results) {
  const Segment& segment = share.segment();
  const std::int64_t slot = segment.slot;
  const std::int64_t column =
      (static_cast<std::int64_t>(segment.row) * a.heads + segment.head) * a.head_dim;
  const auto store = [&](const WarpWeights& weights) {
    for (int dim = static_cast<int>(threadIdx.x); dim < a.head_dim; dim += kThreads) {
      const float result = weights.sum(results, dim);
      store_as(a.out, a.out_dtype, column + dim, result / weights.total);
    }
  };
  const WarpWeights own(results);
  if (segment.pieces == 1) {
    store(own);
    return;
  }
  for (int dim = static_cast<int>(threadIdx.x); dim < a.head_dim; dim += kThreads) {
    partials.sums[slot * a.head_dim + dim] = own.sum(results, dim);
  }
  if (threadIdx.x == 0) partials.totals[slot] = make_float2(own.best, own.total);
  if (!share.completes(partials.arrivals)) return;

  constexpr int kPerLane = (kDims + 31) / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto merged = merge_pieces < kPerLane,
             kPerLane <= 4 ? 8 : 4 > (partials, segment, 0, a.head_dim, warp, kWarps);
#pragma unroll
  for (int n = 0; n < kPerLane; ++n) {
    if (lane + 32 * n < a.head_dim) results.sum[warp][lane + 32 * n] = merged.sum[n];
  }
  if (lane == 0) {
    results.maximum[warp] = merged.maximum;
    results.total[warp] = merged.total;
  }
  __syncthreads();
  store(WarpWeights(results));
}

template <typename T, int kWidth, int kGroup, int kChunks>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    decode_kernel(const AttentionArgs a, const Division division, const Partials partials) {
  using Tile = DecodeTile<T, kWidth, kGroup, kChunks>;
  __shared__ WorkShare share;
  __shared__ WarpResults<Tile::kDims> results;

  let_next_start();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  bool there = share.start(a, division, a.heads);
  if (!there) wait_for_previous();  // kernels after this one rely on it
  if (there && division.into == Division::Into::kWarpHeads) {
    const Segment& segment = share.segment();
    const int head = segment.head * kWarps + warp;
    if (head >= a.heads) {
      wait_for_previous();
      return;
    }
    Running<Tile::kElements> running;
    attend<Tile>(a, segment, head, 0, Tile::kWarpKeys, running);
    merge_groups<Tile>(running);
    leave_result<Tile>(running, results);
    __syncwarp();
    const std::int64_t column =
        (static_cast<std::int64_t>(segment.row) * a.heads + head) * a.head_dim;
    for (int dim = static_cast<int>(threadIdx.x) % 32; dim < a.head_dim; dim += 32) {
      store_as(a.out, a.out_dtype, column + dim, results.sum[warp][dim] / results.total[warp]);
    }
    return;
  }
  while (there) {
    const Segment& segment = share.segment();
    Running<Tile::kElements> running;
    attend<Tile>(a, segment, segment.head, segment.first + warp * Tile::kWarpKeys, Tile::kBlockKeys,
                 running);
    merge_groups<Tile>(running);
    leave_result<Tile>(running, results);
    __syncthreads();
    finish(a, share, partials, results);
    there = share.next(a, division, a.heads);
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
/// of blocks.
bool use_warp_heads(const AttentionArgs& args, const DecodeShape& shape) {
  constexpr std::int64_t kMostContext = 256;
  return context_bound(shape) <= kMostContext &&
         static_cast<std::int64_t>(shape.active) * args.heads >= 2 * resident_blocks();
}

/// What a launch is, of every kernel.
struct DecodeLaunch {
  dim3 grid;
  Division division;
  Partials partials;
};

DecodeLaunch choose_launch(const AttentionArgs& args, const DecodeShape& shape,
                           const AttentionMemory& memory) {
  using Into = Division::Into;
  const Shares shares = choose_shares(args, shape, args.heads, 1, resident_blocks(), memory);
  const auto queries = static_cast<unsigned>(shape.queries);
  const auto heads = static_cast<unsigned>(args.heads);
  if (shares.blocks > 0) {
    return {shares.blocks, {Into::kShares, shape.by_row, resident_blocks()}, shares.partials};
  }
  if (use_warp_heads(args, shape)) {
    return {{queries, (heads + kWarps - 1) / kWarps}, {Into::kWarpHeads, shape.by_row}, {}};
  }
  return {{queries, heads}, {Into::kHeads, shape.by_row}, {}};
}

template <typename T, int kWidth, int kGroup, int kChunks>
void launch(const AttentionArgs& args, const DecodeLaunch& l, cudaStream_t stream) {
  launch_early(decode_kernel<T, kWidth, kGroup, kChunks>, l.grid, kThreads, 0, stream, args,
               l.division, l.partials);
}

/// The fewest lanes that hold head_dim; rows that do not start at multiples of 16 bytes are read
/// element by element.
template <typename T>
void launch_type(const AttentionArgs& args, const DecodeLaunch& l, cudaStream_t stream) {
  constexpr int kWidth = 16 / sizeof(T);
  const int lanes = (args.head_dim + kWidth - 1) / kWidth;
  if (args.head_dim % kWidth != 0 || !is_aligned(args.kv, 16)) {
    launch<T, 1, 32, 8>(args, l, stream);
  } else if (lanes <= 8) {
    launch<T, kWidth, 8, 1>(args, l, stream);
  } else if (lanes <= 16) {
    launch<T, kWidth, 16, 1>(args, l, stream);
  } else if (lanes <= 32) {
    launch<T, kWidth, 32, 1>(args, l, stream);
  } else if constexpr (sizeof(T) == 4) {
    launch<T, kWidth, 32, 2>(args, l, stream);
  }
}

}  // namespace

void launch_attention_decode(const AttentionArgs& args, DType kv_dtype, const DecodeShape& shape,
                             const AttentionMemory& memory, cudaStream_t stream) {
  const DecodeLaunch launch = choose_launch(args, shape, memory);
  with_type(kv_dtype, [&](auto element) { launch_type<decltype(element)>(args, launch, stream); });
}

}  // namespace zi
