#include <cfloat>
#include <cmath>

#include "backend/cuda/cuda_sampler_block.cuh"
#include "backend/cuda/cuda_sampler_rows.h"
#include "backend/cuda/cuda_support.h"

namespace zi {
namespace {

/// Weights below exp(-kDepth) of the largest are 0 in fixed point: see Weight.
constexpr float kDepth = 32;

/// Amounts of which a selection keeps enough: each id counts as one,
struct One {
  static constexpr bool kCounts = true;
  __device__ std::uint64_t operator()(float) const { return 1; }
};

/// or as its weight exp((x - best) / temperature) * scale. The scale is at most 2^44, whose halves
/// are reached at exp(-31.2), and small enough for the sum of all weights to stay below 2^63.
struct Weight {
  static constexpr bool kCounts = false;
  float best;
  float temperature;
  float scale;

  __device__ Weight(float best, float temperature, int count)
      : best(best), temperature(temperature) {
    scale = static_cast<float>(1ull << min(44, 30 + __clz(count)));
  }
  __device__ std::uint64_t operator()(float x) const {
    const float scaled = (x - best) / temperature;
    return scaled > -kDepth ? __float2ull_rn(expf(scaled) * scale) : 0;
  }
};

struct Selection {
  std::uint64_t least = 0;  // order_of the worst id kept, or less
  int listed = -1;          // >= 0: the list holds the ids kept, this many, best first
};

/// Bins of equal width from `best` down to `depth` below it. Each operation on a logit is monotone,
/// as rounded, and so are the bins: larger for larger logits, -1 further down.
struct Steps {
  float best;
  float per_width;

  __device__ Steps(float best, float depth)
      : best(best), per_width(fmaxf(fminf(kBins / depth, FLT_MAX), FLT_MIN)) {}
  __device__ int bin(float x) const {
    const float down = (best - x) * per_width;
    return down < kBins ? kBins - 1 - static_cast<int>(down) : -1;
  }
};

/// The lowest key for which holds(value) is true, where it is for those of all larger ones up to
/// `best`. All lanes of a warp call: each round, they try 32 keys.
template <typename Holds>
__device__ std::uint32_t lowest_key(float best, Holds holds) {
  const std::uint32_t most = key_of(best);
  std::uint32_t below = 0;  // NaN's: no comparison holds
  for (int bits = 27; bits >= 0; bits = bits > 0 ? max(bits - 5, 0) : -1) {
    const std::uint32_t lane = threadIdx.x % kLanes;
    const std::uint64_t tried = below + (static_cast<std::uint64_t>(lane) << bits);
    const bool held = tried >= most || holds(value_of(static_cast<std::uint32_t>(tried)));
    below += static_cast<std::uint32_t>(__popc(__ballot_sync(kAllLanes, !held)) - 1) << bits;
  }
  return below + 1;
}

/// The histogram of the ids whose bin_of(x, key, id) is one, in the shared memory of each block.
template <typename Amount, typename BinOf>
__device__ void tally(RowShared& s, RowGroup& group, const PenalisedRow& row, Amount amount,
                      BinOf bin_of) {
  for (int i = thread_index(); i < kBins; i += kRowThreads) {
    s.counts[i] = 0;
    s.low[i] = 0;
    s.high[i] = 0;
  }
  __syncthreads();
  visit_ids(row, group.begin + thread_index(), group.end, kRowThreads, [&](int id, float x) {
    const int bin = bin_of(x, key_of(x), id);
    if (bin < 0 || bin >= kBins) return;
    atomicAdd(&s.counts[bin], 1u);
    if constexpr (!Amount::kCounts) {
      const std::uint64_t added = amount(x);
      const auto half = static_cast<std::uint32_t>(added);
      // Whichever thread takes the lower half past 2^32 carries.
      const std::uint32_t carry = atomicAdd(&s.low[bin], half) > ~half ? 1 : 0;
      const std::uint32_t rest = static_cast<std::uint32_t>(added >> 32) + carry;
      if (rest != 0) atomicAdd(&s.high[bin], rest);
    }
  });
  __syncthreads();
  if (group.alone()) return;

  RowTally& all = group.work->tallies[group.tallies % 3];
  for (int i = thread_index(); i < kBins; i += kRowThreads) {
    if (s.counts[i] == 0) continue;
    atomicAdd(&all.counts[i], s.counts[i]);
    if constexpr (!Amount::kCounts) {
      atomicAdd(&all.amounts[i], static_cast<unsigned long long>(s.high[i]) << 32 | s.low[i]);
    }
  }
  group.meet();
  RowTally& next_but_one = group.work->tallies[(group.tallies + 2) % 3];
  for (int i = thread_index(); i < kBins; i += kRowThreads) {
    s.counts[i] = __ldcg(&all.counts[i]);
    if constexpr (!Amount::kCounts) {
      const std::uint64_t sum = __ldcg(&all.amounts[i]);
      s.low[i] = static_cast<std::uint32_t>(sum);
      s.high[i] = static_cast<std::uint32_t>(sum >> 32);
    }
    if (group.tallies > 0 && i / kLanes % group.blocks == group.block) {  // the last one's
      next_but_one.counts[i] = 0;
      next_but_one.amounts[i] = 0;
    }
  }
  ++group.tallies;
  __syncthreads();
}

/// Keeps the smallest set of best ids whose amounts reach need(sum of all) >= 1, among the ids of
/// at least the order `least`. `best` is the row's largest value; values more than `depth` below it
/// may have amounts only if each id has the same.
///
/// The histogram of a range of values names the bin in which the need is reached, which is the next
/// range, until few enough ids are left to sort them. The first range is cut into steps of equal
/// width, a 64th of a temperature, which is mostly enough; the next ones are of order-preserving
/// keys (a radix select), down to a single one.
template <typename Need, typename Amount>
__device__ Selection select(RowShared& s, RowGroup& group, const PenalisedRow& row, float best,
                            float depth, std::uint64_t least, Need need, Amount amount) {
  const auto amount_of = [&](std::uint64_t order) { return amount(value_of(key_in(order))); };
  const Steps steps(best, depth);
  bool stepped = true;
  std::uint32_t high = 0;  // the range, once it is one of keys
  std::uint32_t low = 0;
  std::uint64_t above = 0;  // amount and number of the ids above the range
  int above_count = 0;
  std::uint64_t enough = 0;
  for (;;) {
    const int shift = max(0, 32 - kBinBits - __clz(static_cast<int>(high - low)));
    // Ascending: -1 below the range, and kBins above it.
    const auto bin_of = [&](float x, std::uint32_t key, int id) {
      if (order_of(key, id) < least) return -1;
      if (stepped) return steps.bin(x);
      return key < low ? -1 : key > high ? kBins : static_cast<int>((key - low) >> shift);
    };
    tally(s, group, row, amount, bin_of);

    // Two bins a thread, from the best down.
    const int bin = kBins - 1 - 2 * thread_index();
    std::uint64_t amounts[2];
    for (int i = 0; i < 2; ++i) {
      amounts[i] = Amount::kCounts
                       ? s.counts[bin - i]
                       : static_cast<std::uint64_t>(s.high[bin - i]) << 32 | s.low[bin - i];
    }
    const int count = static_cast<int>(s.counts[bin]);
    const int next_count = static_cast<int>(s.counts[bin - 1]);
    std::uint64_t total = 0;
    std::uint64_t total_count = 0;
    const std::uint64_t before = above + sum_before(s, amounts[0] + amounts[1], total);
    const int count_before =
        above_count + static_cast<int>(sum_before(s, static_cast<std::uint64_t>(count + next_count),
                                                  total_count));
    if (enough == 0) enough = need(total);
    if (above + total < enough) {
      if (stepped) low = lowest_key(best, [&](float x) { return steps.bin(x) >= 0; });
      stepped = false;
      if (low <= key_in(least)) return {least, -1};  // less than asked for: all of it
      above += total;
      above_count += static_cast<int>(total_count);
      high = low - 1;
      low = 0;
      continue;
    }
    if (before < enough && enough <= before + amounts[0] + amounts[1]) {
      const bool second = before + amounts[0] < enough;
      s.bin = second ? bin - 1 : bin;
      s.in_bin = second ? next_count : count;
      s.above = before + (second ? amounts[0] : 0);
      s.above_count = count_before + (second ? count : 0);
    }
    __syncthreads();
    above = s.above;
    above_count = s.above_count;

    const int at = s.bin;
    const int in_bin = s.in_bin;
    if (in_bin <= kListedIds) {
      const bool all = above_count + in_bin <= kListedIds;  // the better ones, too
      const int last = all ? kBins : at;
      const int listed = list_ids(s, group, row, [&](float x, std::uint32_t key, int id) {
        const int in = bin_of(x, key, id);
        return in >= at && in <= last;
      });
      const std::uint64_t needed = all ? enough : enough - above;
      const int reached = reach_in_list(
          s, listed, [&](std::uint64_t) { return needed; }, amount_of);
      return {s.list[reached], all ? reached + 1 : -1};
    }
    if (stepped) {
      high = at == kBins - 1 ? key_of(best)
                             : lowest_key(best, [&](float x) { return steps.bin(x) > at; }) - 1;
      low = lowest_key(best, [&](float x) { return steps.bin(x) >= at; });
      stepped = false;
    } else {
      low += static_cast<std::uint32_t>(at) << shift;
      high = min(high, low + ((1u << shift) - 1));
    }
    if (low == high) {  // equals: the lower ids are better
      const int id = reach_in_row(
          s, group, row, [&](std::uint64_t) { return enough - above; },
          [&](int other, float x) {
            const bool in = key_of(x) == low && order_of(low, other) >= least;
            return in ? amount(x) : 0;
          });
      return {order_of(low, group.found_id(id)), -1};
    }
  }
}

/// The draw of one row: the first of the kept ids, in ascending order, whose running sum of weights
/// exceeds the point. kElsewhere in all blocks but one.
__device__ int draw(RowShared& s, RowGroup& group, const PenalisedRow& row,
                    const SampleParams& params, float best) {
  const Weight weight(best, params.temperature, row.count);
  Selection kept;
  if (params.least_exponent > -INFINITY) {
    const std::uint32_t key = lowest_key(
        best, [&](float x) { return (x - best) / params.temperature >= params.least_exponent; });
    kept.least = static_cast<std::uint64_t>(key) << 32;  // with every id of that key
  }
  if (params.top_k > 0 && params.top_k < row.count) {
    const auto k = static_cast<std::uint64_t>(params.top_k);
    kept = select(
        s, group, row, best, kDepth * fmaxf(params.temperature, 1.0f), kept.least,
        [k](std::uint64_t) { return k; }, One{});
  }
  if (params.top_p < 1) {
    const auto enough = [&](std::uint64_t mass) {
      const double part = ceil(static_cast<double>(params.top_p) * static_cast<double>(mass));
      return static_cast<std::uint64_t>(fmax(part, 1.0));
    };
    if (kept.listed >= 0) {
      kept.listed = 1 + reach_in_list(s, kept.listed, enough, [&](std::uint64_t order) {
                      return weight(value_of(key_in(order)));
                    });
    } else {
      kept = select(s, group, row, best, kDepth * params.temperature, kept.least, enough, weight);
    }
  }
  const auto beyond_point = [&](std::uint64_t mass) {
    const auto point = static_cast<std::uint64_t>(params.uniform * static_cast<double>(mass));
    return mass > 0 ? min(point, mass - 1) + 1 : 1;
  };
  if (kept.listed < 0) {
    const int id = reach_in_row(s, group, row, beyond_point, [&](int other, float x) {
      return order_of(key_of(x), other) >= kept.least ? weight(x) : 0;
    });
    return id == kNowhere && group.block != 0 ? kElsewhere : id;
  }
  if (group.block != 0) return kElsewhere;  // all blocks have the list
  // The complements of the ids to the front: sorted largest first, ids ascend.
  __syncthreads();
  for (int i = thread_index(); i < kept.listed; i += kRowThreads) {
    s.list[i] = s.list[i] << 32 | s.list[i] >> 32;
  }
  sort_list(s, kept.listed);
  const int at = reach_in_list(s, kept.listed, beyond_point, [&](std::uint64_t entry) {
    return weight(value_of(static_cast<std::uint32_t>(entry)));
  });
  return id_of(s.list[at] >> 32);
}

/// The result of the row with those params; id kNowhere: the best one's. Reads the row's values
/// again: kept through the draw, they would be registers too many.
__device__ void write_result(const SampleBatch& batch, int index, int id) {
  const SampleParams params = batch.params[index];
  const RowState state = batch.states[index];
  float logprob = -INFINITY;
  if (nothing_left(params, state)) {
    id = kNoId;
  } else {
    if (id < 0) id = id_of(state.best);
    const float raw = batch.logits[params.row * batch.ld + id];
    logprob = static_cast<float>(static_cast<double>(raw) - state.log_sum);
  }
  batch.results.ids[params.row] = id;
  batch.results.logprobs[params.row] = logprob;
}

__device__ RowGroup group_of(const SampleBatch& batch, const PenalisedRow& row) {
  RowWork* const work = batch.works == nullptr ? nullptr : batch.works + blockIdx.y;
  return RowGroup(work, static_cast<int>(gridDim.x), static_cast<int>(blockIdx.x), row.count);
}

__device__ void draw_row(RowShared& s, const SampleBatch& batch, int index) {
  const SampleParams params = batch.params[index];
  const RowState state = batch.states[index];
  if (state.valid == 0) return;
  const PenalisedRow row = drawn_row(batch, params);
  RowGroup group = group_of(batch, row);
  const float best = value_of(key_in(state.best));
  // A penalty may take the logits beyond float32: then nothing but the best is left.
  const int other = group.block == 0 ? kNowhere : kElsewhere;
  const int id = isfinite(best) ? draw(s, group, row, params, best) : other;
  if (id != kElsewhere && thread_index() == 0) write_result(batch, index, id);
}

__device__ void report_row(RowShared& s, const SampleBatch& batch, int index) {
  const RowState state = batch.states[index];
  const SampleParams params = batch.params[index];
  const PenalisedRow row = raw_row(batch, params);
  RowGroup group = group_of(batch, row);
  const int count = state.valid == 0 ? 0 : min(params.top, row.count);
  if (count > 0) {
    const auto enough = static_cast<std::uint64_t>(count);
    const Selection kept = select(
        s, group, row, state.largest, kDepth, 0, [enough](std::uint64_t) { return enough; }, One{});
    if (kept.listed < 0) {
      group.meet();  // all have read the last list
      list_ids(s, group, row,
               [&](float, std::uint32_t key, int id) { return order_of(key, id) >= kept.least; });
    }
  }
  if (group.block != 0) return;
  for (int i = thread_index(); i < params.top; i += kRowThreads) {
    const std::uint64_t order = i < count ? s.list[i] : 0;
    const float x = value_of(key_in(order));
    const std::int64_t at = static_cast<std::int64_t>(params.row) * batch.results.top + i;
    batch.results.top_ids[at] = i < count ? id_of(order) : -1;
    batch.results.top_logprobs[at] =
        i < count ? static_cast<float>(static_cast<double>(x) - state.log_sum) : -INFINITY;
  }
}

/// Blocks (x) of each row (y): those that are drawn, then those that report.
__global__ void __launch_bounds__(kRowThreads)
    finish_kernel(const SampleBatch batch, int drawn, int first_reported) {
  __shared__ RowShared s;
  const auto index = static_cast<int>(blockIdx.y);
  if (index < drawn) {
    draw_row(s, batch, index);
  } else {
    report_row(s, batch, first_reported + index - drawn);
  }
}

}  // namespace

int blocks_at_once() {
  int device = 0;
  int processors = 0;
  int cooperative = 0;
  int per_processor = 0;
  ZI_CUDA(cudaGetDevice(&device));
  ZI_CUDA(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  ZI_CUDA(cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device));
  ZI_CUDA(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, finish_kernel, kRowThreads, 0));
  // A quarter is for gathers under way, which may last until another rank has drawn its rows.
  return cooperative == 0 ? 0 : processors * per_processor * 3 / 4;
}

void finish_rows(const SampleBatch& batch, int drawn, int first_reported, int reported,
                 cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(batch.blocks), static_cast<unsigned>(drawn + reported));
  if (batch.blocks == 1) {
    finish_kernel<<<grid, kRowThreads, 0, stream>>>(batch, drawn, first_reported);
    ZI_CUDA_LAUNCHED();
    return;
  }
  SampleBatch given = batch;
  void* arguments[] = {&given, &drawn, &first_reported};
  ZI_CUDA(
      cudaLaunchCooperativeKernel(finish_kernel, grid, dim3(kRowThreads), arguments, 0, stream));
}

}  // namespace zi
