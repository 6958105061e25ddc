#pragma once

#include <cstdint>

#include "backend/cuda/cuda_sample_batch.h"

namespace zi {

inline constexpr int kRowThreads = 1024;

__device__ inline int thread_index() { return static_cast<int>(threadIdx.x); }

/// The blocks that work on one row, and this one among them. They all run at once (a cooperative
/// launch), take the same decisions, and so meet equally often.
///
/// A block is at most one meeting ahead of another. So what is written in front of a meeting and
/// read behind it has two places in turn, and what has to be cleared in between has three.
struct RowGroup {
  RowWork* work;  // null for a single block
  int blocks;
  int block;
  int begin, end;  // the ids of this block
  unsigned meetings = 0;
  int tallies = 0;
  int lists = 0;
  int sums = 0;
  int found = 0;

  __device__ RowGroup(RowWork* work, int blocks, int block, int ids)
      : work(work), blocks(blocks), block(block) {
    const int piece = ((ids + blocks - 1) / blocks + kLanes - 1) / kLanes * kLanes;
    begin = min(ids, block * piece);
    end = min(ids, begin + piece);
  }

  __device__ bool alone() const { return blocks == 1; }

  /// Waits for all threads of all blocks, whose writes from before are then seen by loads that pass
  /// by the first-level cache (__ldcg).
  __device__ void meet() {
    __syncthreads();
    if (alone()) return;
    ++meetings;
    if (thread_index() == 0) {
      __threadfence();
      atomicAdd(&work->arrived, 1u);
      const unsigned all = meetings * static_cast<unsigned>(blocks);
      while (*static_cast<volatile unsigned*>(&work->arrived) < all) {
      }
      __threadfence();
    }
    __syncthreads();
  }

  /// Adds the sums of the other blocks: those of earlier ids to `before`, all to `total`.
  __device__ void add_sums(std::uint64_t& before, std::uint64_t& total) {
    if (alone()) return;
    static_assert(kMostRowBlocks == kLanes);
    unsigned long long* const shared = work->sums[sums++ % 2];
    if (thread_index() == 0) shared[block] = total;
    meet();
    const int lane = thread_index() % kLanes;
    const std::uint64_t sum = lane < blocks ? __ldcg(shared + lane) : 0;
    std::uint64_t ahead = lane < block ? sum : 0;
    std::uint64_t all = sum;
    for (int other = kLanes / 2; other > 0; other /= 2) {
      ahead += __shfl_xor_sync(kAllLanes, ahead, other);
      all += __shfl_xor_sync(kAllLanes, all, other);
    }
    before += ahead;
    total = all;
  }

  /// The id that one of the blocks has found; the others have none (below 0).
  __device__ int found_id(int id) {
    if (alone()) return id;
    int* const shared = &work->found[found++ % 2];
    if (thread_index() == 0 && id >= 0) *shared = id;
    meet();
    return __ldcg(shared);
  }
};

}  // namespace zi
