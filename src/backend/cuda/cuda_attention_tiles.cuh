#pragma once

#include "backend/cuda/cuda_attention_mma.cuh"
#include "backend/cuda/cuda_attention_pages.cuh"
#include "backend/cuda/cuda_attention_shares.cuh"

/// Tiles of heads that share keys and values, in cuda_attention_grouped.cu: what a warp has of
/// them, and how that becomes a row's results.
namespace zi {

inline constexpr int kTileHeads = 8;  // the columns of an mma

/// The heads of queries that a tile stands for: `count` from `first` on, of one of keys and values.
struct TileHeads {
  int kv_head;
  int first;
  int count;
};

template <int kTiles>
__device__ inline TileHeads heads_of(const AttentionArgs& a, int tile) {
  const int row_tiles = (a.group + kTiles * kTileHeads - 1) / (kTiles * kTileHeads);
  const int kv_head = tile / row_tiles;
  const int first = tile % row_tiles * kTiles * kTileHeads;
  return {kv_head, kv_head * a.group + first, min(a.group - first, kTiles * kTileHeads)};
}

/// Softmaxes that run, one for each head of a tile, of the keys that a warp takes. Over lanes as
/// the mma's results: see ptx::multiply_add.
template <int kDim, int kTiles>
struct TileRunning {
  float sums[kTiles][4 * PageRing<kDim>::kValueChunks][4] = {};  // of weights * v
  float maximum[kTiles][2];
  float total[kTiles][2];  // of this lane's keys
};

/// What the warps of a block leave to each other, beside the sums of weights * v.
template <int kWarps, int kHeads>
struct TileResults {
  float maximum[kWarps][kHeads];
  float total[kWarps][kHeads];
};

/// Over the eight lanes that hold the same heads.
template <typename Combine>
__device__ inline float over_keys(float x, const Combine& combine) {
#pragma unroll
  for (int lanes = 4; lanes < 32; lanes *= 2) {
    x = combine(x, __shfl_xor_sync(0xffffffffu, x, lanes));
  }
  return x;
}

/// Leaves a warp's results: the sums in what was the rings, (warps, 8 kTiles, kSumStride).
template <int kDim, int kTiles>
__device__ __forceinline__ void leave_tile(
    const TileRunning<kDim, kTiles>& running, float* shared_sums,
    TileResults<PageRing<kDim>::kWarps, kTiles * kTileHeads>& results) {
  using R = PageRing<kDim>;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int upper = lane / 4;
  const int pair = 2 * (lane % 4);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int head = n * kTileHeads + pair + r;
      const float all = over_keys(running.total[n][r], [](float x, float y) { return x + y; });
      if (upper == 0) {
        results.maximum[warp][head] = running.maximum[n][r];
        results.total[warp][head] = all;
      }
      float* const to = shared_sums + (warp * kTiles * kTileHeads + head) * R::kSumStride;
#pragma unroll
      for (int m = 0; m < 4 * R::kValueChunks; ++m) {
        *reinterpret_cast<float2*>(to + m / 4 * 64 + upper * 8 + m % 4 * 2) =
            make_float2(running.sums[n][m][r], running.sums[n][m][r + 2]);
      }
    }
  }
}

/// Merges what the warps of the block have to the row's results for the tile's heads, or to a piece
/// of them; the last block with a piece then merges all of them. A warp does one head at a time.
template <int kDim, int kTiles>
__device__ __forceinline__ void finish_tile(
    const AttentionArgs& a, WorkShare& share, const Partials& partials, const float* shared_sums,
    const TileResults<PageRing<kDim>::kWarps, kTiles * kTileHeads>& results) {
  using R = PageRing<kDim>;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const Segment& segment = share.segment();
  const bool whole = segment.pieces == 1;
  const TileHeads heads = heads_of<kTiles>(a, segment.head);
  const std::int64_t column =
      (static_cast<std::int64_t>(segment.row) * a.heads + heads.first) * a.head_dim;
  for (int head = warp; head < heads.count; head += warps) {
    float best = results.maximum[0][head];  // warp 0 has a key
    for (int w = 1; w < warps; ++w) best = fmaxf(best, results.maximum[w][head]);
    float fades[R::kWarps];
    float all = 0.0f;
#pragma unroll
    for (int w = 0; w < R::kWarps; ++w) {
      fades[w] = w < warps ? ptx::exp2(results.maximum[w][head] - reference_of(best)) : 0.0f;
      if (w < warps) all += fades[w] * results.total[w][head];
    }
    const std::int64_t part = static_cast<std::int64_t>(segment.slot) * partials.slot_heads + head;
    for (int dim = lane; dim < a.head_dim; dim += 32) {
      float result = 0.0f;
#pragma unroll
      for (int w = 0; w < R::kWarps; ++w) {
        if (w < warps) {
          result += fades[w] * shared_sums[(w * kTiles * kTileHeads + head) * R::kSumStride + dim];
        }
      }
      if (whole) {
        store_as(a.out, a.out_dtype, column + head * a.head_dim + dim, result / all);
      } else {
        partials.sums[part * a.head_dim + dim] = result;
      }
    }
    if (!whole && lane == 0) partials.totals[part] = make_float2(best, all);
  }
  if (whole || !share.completes(partials.arrivals)) return;
  constexpr int kPerLane = (kDim + 31) / 32;
  for (int head = warp; head < heads.count; head += warps) {
    const auto merged = merge_pieces < kPerLane,
               kPerLane <= 4 ? 16 : 8 > (partials, segment, head, a.head_dim, 0, 1);
#pragma unroll
    for (int n = 0; n < kPerLane; ++n) {
      const int dim = lane + 32 * n;
      if (dim < a.head_dim) {
        store_as(a.out, a.out_dtype, column + head * a.head_dim + dim,
                 merged.sum[n] / merged.total);
      }
    }
  }
}

}  // namespace zi
