#pragma once

#include <cstdint>

#include "backend/cuda/cuda_row_group.cuh"
#include "backend/cuda/cuda_sample_batch.h"

/// What the threads of a row's blocks do together with its logits: sums, sorted lists, and where a
/// running sum reaches what is needed.
namespace zi {

/// One block works on one row, or a few of them do. Everything they sum is an integer (counts of
/// ids, or weights in fixed point), so neither the order in which their threads come nor their
/// number ever shows in a result.
inline constexpr int kRowWarps = kRowThreads / kLanes;
inline constexpr int kBinBits = 11;
inline constexpr int kRowLoads = 8;  // loads that a thread has under way
static_assert(kBins == 1 << kBinBits && kBins == 2 * kRowThreads && kRowWarps == kLanes);
static_assert(kListedIds == 2 * kRowThreads);

/// What reach_in_row returns where there is no such id, and where another block has it.
inline constexpr int kNowhere = -1;
inline constexpr int kElsewhere = -2;

struct RowShared {
  std::uint32_t counts[kBins];
  std::uint32_t low[kBins];  // amounts, in two halves: shared memory adds 32 bits at once
  std::uint32_t high[kBins];
  std::uint64_t list[kListedIds];  // order_of ids
  std::uint64_t warps[kRowWarps];
  std::uint64_t above;
  int above_count;
  int bin;
  int in_bin;
  int index;
  int listed;
};

/// The sum of x over the threads before this one; `total`: over all. All threads call.
__device__ inline std::uint64_t sum_before(RowShared& s, std::uint64_t x, std::uint64_t& total) {
  const int lane = thread_index() % kLanes;
  const int warp = thread_index() / kLanes;
  const auto inclusive = [lane](std::uint64_t value) {
    for (int distance = 1; distance < kLanes; distance *= 2) {
      const std::uint64_t other = __shfl_up_sync(kAllLanes, value, distance);
      if (lane >= distance) value += other;
    }
    return value;
  };
  const std::uint64_t within = inclusive(x);
  __syncthreads();  // the last call's sums have been read
  if (lane == kLanes - 1) s.warps[warp] = within;
  __syncthreads();
  if (warp == 0) s.warps[lane] = inclusive(s.warps[lane]);
  __syncthreads();
  total = s.warps[kRowWarps - 1];
  return (warp > 0 ? s.warps[warp - 1] : 0) + within - x;
}

/// Calls visit(id, value) for the ids first, first + stride, .. below end. Threads of a warp take
/// neighbours.
template <typename Visit>
__device__ inline void visit_ids(const PenalisedRow& row, int first, int end, int stride,
                                 Visit visit) {
  for (int base = first; base < end; base += kRowLoads * stride) {
    float x[kRowLoads];
#pragma unroll
    for (int i = 0; i < kRowLoads; ++i) {
      const int id = base + i * stride;
      x[i] = id < end ? __ldg(row.logits + id) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kRowLoads; ++i) {
      const int id = base + i * stride;
      if (id < end) visit(id, row.value(id, x[i]));
    }
  }
}

/// Sorts the first `count` of the list, largest first (Batcher's bitonic network).
__device__ inline void sort_list(RowShared& s, int count) {
  int size = 2;
  while (size < count) size *= 2;
  for (int i = count + thread_index(); i < size; i += kRowThreads) s.list[i] = 0;
  bool within = false;  // the last step was: a warp's threads had 64 entries to themselves
  for (int run = 2; run <= size; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
      if (within && step <= kLanes) {
        __syncwarp();
      } else {
        __syncthreads();
      }
      within = step <= kLanes;
      if (thread_index() >= size / 2) continue;
      const int i = 2 * thread_index() - (thread_index() & (step - 1));
      const std::uint64_t a = s.list[i];
      const std::uint64_t b = s.list[i + step];
      const bool descending = (i & run) == 0;
      if ((a < b) == descending) {
        s.list[i] = b;
        s.list[i + step] = a;
      }
    }
  }
  __syncthreads();
}

/// Fills the list with the row's ids for which keep(x, key, id) holds, best first. Returns their
/// number, at most kListedIds. At most twice for a group.
template <typename Keep>
__device__ inline int list_ids(RowShared& s, RowGroup& group, const PenalisedRow& row, Keep keep) {
  __syncthreads();  // the last list has been read
  if (thread_index() == 0) s.listed = 0;
  __syncthreads();
  visit_ids(row, group.begin + thread_index(), group.end, kRowThreads, [&](int id, float x) {
    const std::uint32_t key = key_of(x);
    if (!keep(x, key, id)) return;
    const int at = atomicAdd(&s.listed, 1);
    if (at < kListedIds) s.list[at] = order_of(key, id);
  });
  __syncthreads();
  int count = min(s.listed, kListedIds);
  if (!group.alone()) {
    unsigned* const listed = &group.work->listed[group.lists++];
    if (thread_index() == 0) {
      s.index = static_cast<int>(atomicAdd(listed, static_cast<unsigned>(count)));
    }
    __syncthreads();
    const int first = s.index;
    for (int i = thread_index(); i < count && first + i < kListedIds; i += kRowThreads) {
      group.work->list[first + i] = s.list[i];
    }
    group.meet();
    count = min(static_cast<int>(__ldcg(listed)), kListedIds);
    for (int i = thread_index(); i < count; i += kRowThreads) {
      s.list[i] = __ldcg(group.work->list + i);
    }
  }
  sort_list(s, count);
  return count;
}

/// The first entry of the list at which the running sum of amount(entry) reaches need(sum of
/// all) >= 1.
template <typename Need, typename Amount>
__device__ inline int reach_in_list(RowShared& s, int count, Need need, Amount amount) {
  const int at = 2 * thread_index();
  const std::uint64_t first = at < count ? amount(s.list[at]) : 0;
  const std::uint64_t second = at + 1 < count ? amount(s.list[at + 1]) : 0;
  std::uint64_t total = 0;
  const std::uint64_t before = sum_before(s, first + second, total);
  const std::uint64_t enough = need(total);
  if (thread_index() == 0) s.index = count - 1;
  __syncthreads();
  if (before < enough && enough <= before + first + second) {
    s.index = at + (before + first < enough ? 1 : 0);
  }
  __syncthreads();
  return s.index;
}

/// The lowest id at which the running sum of amount(id, x), over ascending ids, reaches need(sum of
/// all) >= 1: in the block that has it among its ids. Else kElsewhere, or kNowhere.
template <typename Need, typename Amount>
__device__ inline int reach_in_row(RowShared& s, RowGroup& group, const PenalisedRow& row,
                                   Need need, Amount amount) {
  // Each warp sums a segment; then the whole block looks at the one that reaches it.
  const int segment = ((group.end - group.begin + kRowThreads - 1) / kRowThreads) * kLanes;
  const int warp = thread_index() / kLanes;
  const int lane = thread_index() % kLanes;
  const int warp_begin = group.begin + warp * segment;
  std::uint64_t sum = 0;
  visit_ids(row, warp_begin + lane, min(group.end, warp_begin + segment), kLanes,
            [&](int id, float x) { sum += amount(id, x); });
  for (int other = kLanes / 2; other > 0; other /= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, other);
  }
  if (lane != 0) sum = 0;
  std::uint64_t total = 0;
  std::uint64_t before = sum_before(s, sum, total);
  group.add_sums(before, total);
  const std::uint64_t enough = need(total);
  if (thread_index() == 0) s.index = -1;
  __syncthreads();
  if (before < enough && enough <= before + sum) {
    s.index = warp_begin;
    s.above = before;
  }
  __syncthreads();
  const int begin = s.index;
  if (begin < 0) return enough > total ? kNowhere : kElsewhere;
  const std::uint64_t in_segment = enough - s.above;

  const int piece = segment / kLanes;
  const int first = begin + thread_index() * piece / kLanes;
  const int end = min(group.end, begin + (thread_index() + 1) * piece / kLanes);
  sum = 0;
  visit_ids(row, first, end, 1, [&](int id, float x) { sum += amount(id, x); });
  before = sum_before(s, sum, total);
  if (before < in_segment && in_segment <= before + sum) {
    std::uint64_t running = before;
    int id = first;
    for (;; ++id) {
      running += amount(id, row.value(id, row.logits[id]));
      if (running >= in_segment) break;
    }
    s.index = id;
  }
  __syncthreads();
  return s.index;
}

}  // namespace zi
