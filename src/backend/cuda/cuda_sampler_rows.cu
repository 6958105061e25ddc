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

/// Keeps the smallest set of best ids whose amounts reach need(sum of all) >= 1, among the ids of
/// at least the order `least`. `best` is the row's largest value; values more than `depth` below it
/// may have amounts only if each id has the same.
///
/// A radix select over the order-preserving keys: the histogram of a range of keys names the bin in
/// which the need is reached, which is the next range, until few enough ids are left to sort them.
template <typename Need, typename Amount>
__device__ Selection select(RowShared& s, const PenalisedRow& row, float best, float depth,
                            std::uint64_t least, Need need, Amount amount) {
  const auto amount_of = [&](std::uint64_t order) { return amount(value_of(key_in(order))); };
  std::uint32_t high = key_of(best);
  std::uint32_t low = min(key_of(best - depth), high);
  std::uint64_t above = 0;  // amount and number of the ids above the range
  int above_count = 0;
  std::uint64_t enough = 0;
  for (;;) {
    const int shift = max(0, 32 - kBinBits - __clz(static_cast<int>(high - low)));
    for (int i = thread_index(); i < kBins; i += kRowThreads) {
      s.counts[i] = 0;
      s.low[i] = 0;
      s.high[i] = 0;
    }
    __syncthreads();
    visit_ids(row, thread_index(), row.count, kRowThreads, [&](int id, float x) {
      const std::uint32_t key = key_of(x);
      if (key < low || key > high || order_of(key, id) < least) return;
      const std::uint32_t bin = (key - low) >> shift;
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
    low += static_cast<std::uint32_t>(s.bin) << shift;
    high = min(high, low + ((1u << shift) - 1));

    const int in_bin = s.in_bin;
    const auto rest = [&](std::uint64_t) { return enough - above; };
    if (above_count + in_bin <= kListedIds) {
      const int listed = list_ids(s, row, low, 0xffffffff, least);
      const int last = reach_in_list(
          s, listed, [&](std::uint64_t) { return enough; }, amount_of);
      return {s.list[last], last + 1};
    }
    if (in_bin <= kListedIds) {
      const int listed = list_ids(s, row, low, high, least);
      return {s.list[reach_in_list(s, listed, rest, amount_of)], -1};
    }
    if (low == high) {  // equals: the lower ids are better
      const int id = reach_in_row(s, row, rest, [&](int other, float x) {
        const bool in = key_of(x) == low && order_of(low, other) >= least;
        return in ? amount(x) : 0;
      });
      return {order_of(low, id), -1};
    }
  }
}

/// The lowest key whose (value - best) / temperature is not below `exponent` <= 0.
__device__ std::uint32_t least_key(float best, float temperature, float exponent) {
  std::uint32_t low = key_of(-INFINITY);
  std::uint32_t high = key_of(best);
  while (low < high) {
    const std::uint32_t middle = low + (high - low) / 2;
    if ((value_of(middle) - best) / temperature < exponent) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return high;
}

/// The draw of one row: the first of the kept ids, in ascending order, whose running sum of weights
/// exceeds the point.
__device__ int draw(RowShared& s, const PenalisedRow& row, const SampleParams& params, float best) {
  const Weight weight(best, params.temperature, row.count);
  Selection kept;
  if (params.least_exponent > -INFINITY) {
    const std::uint32_t key = least_key(best, params.temperature, params.least_exponent);
    kept.least = static_cast<std::uint64_t>(key) << 32;  // with every id of that key
  }
  if (params.top_k > 0 && params.top_k < row.count) {
    const auto k = static_cast<std::uint64_t>(params.top_k);
    kept = select(
        s, row, best, kDepth * fmaxf(params.temperature, 1.0f), kept.least,
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
      kept = select(s, row, best, kDepth * params.temperature, kept.least, enough, weight);
    }
  }
  const auto beyond_point = [&](std::uint64_t mass) {
    const auto point = static_cast<std::uint64_t>(params.uniform * static_cast<double>(mass));
    return mass > 0 ? min(point, mass - 1) + 1 : 1;
  };
  if (kept.listed < 0) {
    return reach_in_row(s, row, beyond_point, [&](int id, float x) {
      return order_of(key_of(x), id) >= kept.least ? weight(x) : 0;
    });
  }
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

/// The result of one row; id -1: the best one's. Reads the row's values again: kept through the
/// draw, they would be registers too many.
__device__ void write_result(const SampleBatch& batch, int id) {
  const SampleParams params = batch.params[blockIdx.x];
  const RowState state = batch.states[blockIdx.x];
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

__global__ void __launch_bounds__(kRowThreads) draw_kernel(const SampleBatch batch) {
  __shared__ RowShared s;
  const SampleParams params = batch.params[blockIdx.x];
  const RowState state = batch.states[blockIdx.x];
  if (state.valid == 0) return;
  const PenalisedRow row = drawn_row(batch, params);
  const float best = value_of(key_in(state.best));
  // A penalty may take the logits beyond float32: then nothing but the best is left.
  const int id = isfinite(best) ? draw(s, row, params, best) : -1;
  if (thread_index() == 0) write_result(batch, id);
}

__global__ void __launch_bounds__(kRowThreads) report_kernel(const SampleBatch batch, int first) {
  __shared__ RowShared s;
  const int index = first + static_cast<int>(blockIdx.x);
  const RowState state = batch.states[index];
  const SampleParams params = batch.params[index];
  const PenalisedRow row = raw_row(batch, params);
  const int count = state.valid == 0 ? 0 : min(params.top, row.count);
  if (count > 0) {
    const auto enough = static_cast<std::uint64_t>(count);
    const Selection kept = select(
        s, row, state.largest, kDepth, 0, [enough](std::uint64_t) { return enough; }, One{});
    if (kept.listed < 0) list_ids(s, row, 0, 0xffffffff, kept.least);
  }
  for (int i = thread_index(); i < params.top; i += kRowThreads) {
    const std::uint64_t order = i < count ? s.list[i] : 0;
    const float x = value_of(key_in(order));
    const std::int64_t at = static_cast<std::int64_t>(params.row) * batch.results.top + i;
    batch.results.top_ids[at] = i < count ? id_of(order) : -1;
    batch.results.top_logprobs[at] =
        i < count ? static_cast<float>(static_cast<double>(x) - state.log_sum) : -INFINITY;
  }
}

}  // namespace

void draw_rows(const SampleBatch& batch, int count, cudaStream_t stream) {
  draw_kernel<<<static_cast<unsigned>(count), kRowThreads, 0, stream>>>(batch);
  ZI_CUDA_LAUNCHED();
}

void report_rows(const SampleBatch& batch, int first, int count, cudaStream_t stream) {
  report_kernel<<<static_cast<unsigned>(count), kRowThreads, 0, stream>>>(batch, first);
  ZI_CUDA_LAUNCHED();
}

}  // namespace zi
