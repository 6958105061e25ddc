#pragma once

#include "backend/cuda/cuda_attention_kernels.cuh"

/// What the attention kernels for prompts share.
namespace zi {

/// Over the four lanes that share rows of mma.
__device__ inline float quad_maximum(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/// Tiles of `most` tokens of a batch, in a grid of tokens / most + sequences of them: tile t
/// belongs to the last sequence s whose first tile, row_begin[s] / most + s, is not beyond t.
/// Rounded down, these leave each sequence at least the ceil(its tokens / most) that it needs. So
/// the grid depends on sums only; a tile that nobody needs has no tokens, as those of sequences
/// with a single one.
struct PromptTile {
  int sequence;
  int first;     // token of the batch
  int tokens;    // 1 .. most, or none
  int position;  // of the first token
  int keys;      // that the last token sees

  /// By all kThreads threads of a block.
  template <int kThreads>
  static __device__ __forceinline__ PromptTile find(const AttentionArgs& a, int tile, int most) {
    PromptTile found{};
    for (int first = 1; first < a.sequences; first += kThreads) {
      const int s = first + static_cast<int>(threadIdx.x);
      found.sequence +=
          __syncthreads_count(s < a.sequences && a.row_begin[s] / most + s <= tile ? 1 : 0);
    }
    const int begin = a.row_begin[found.sequence];
    const int rows = a.row_begin[found.sequence + 1] - begin;
    const int first_row = (tile - (begin / most + found.sequence)) * most;
    if (rows <= 1 || first_row >= rows) return found;
    found.first = begin + first_row;
    found.tokens = min(most, rows - first_row);
    found.position = a.context[found.sequence] - rows + first_row;
    found.keys = found.position + found.tokens;
    return found;
  }

  /// The same, through shuffles: so the compiler knows that all lanes of a warp have it, and that
  /// they stay together in loops over its keys.
  __device__ __forceinline__ PromptTile in_all_lanes() const {
    const auto same = [](int value) { return __shfl_sync(0xffffffffu, value, 0); };
    return {same(sequence), same(first), same(tokens), same(position), same(keys)};
  }
};

}  // namespace zi
