#pragma once

#include <cstddef>
#include <cstdint>

#include "zero_infer/ops.h"

/// What the files of the CUDA sampler share: the rows as kernels see them, and the order of their
/// ids.
namespace zi {

/// The most best ids that a report may ask for, and that a block sorts in shared memory.
inline constexpr int kListedIds = 2048;

/// SampleRow for the kernels.
struct SampleParams {
  double uniform = 0;        // the row's random number, in [0, 1)
  std::int32_t row = 0;      // of the logits and the results
  std::int32_t target = -1;  // >= 0: only its log-probability is wanted
  std::int32_t bitmap = -1;  // of the ids in the history; -1: no repetition penalty
  std::int32_t copy = -1;    // of the row's logits, with what LogitChanges make of them; -1: none
  std::int32_t top_k = 0;
  std::int32_t top = 0;  // best ids to report
  float temperature = 0;
  float top_p = 1;
  float least_exponent = 0;  // see sampler.h
  float penalty = 1;
};

/// What is known of a row after one look at all of its logits.
struct RowState {
  double log_sum = 0;      // log(sum(exp(logits))), raw
  std::uint64_t best = 0;  // order_of the best id after bias and penalties
  float largest = 0;       // raw
  std::int32_t valid = 0;  // 0: NaN or infinity, or nothing but -infinity
};

/// Blocks that work on one row together, at most.
inline constexpr int kMostRowBlocks = 32;
/// Ranges of values that a search looks at together.
inline constexpr int kBins = 2048;

/// Amounts and numbers of the ids of each bin.
struct RowTally {
  unsigned long long amounts[kBins];
  unsigned counts[kBins];
};

/// Where the blocks of one row bring their parts together. Enough is there for each use to have its
/// own until all blocks are done with it: see RowGroup.
struct alignas(16) RowWork {
  // 0 at the start:
  unsigned arrived;
  unsigned listed[2];
  RowTally tallies[3];
  // Written before it is read:
  alignas(16) unsigned long long sums[2][kMostRowBlocks];
  int found[2];
  unsigned long long list[kListedIds];
};

inline constexpr std::size_t kClearedBytes = offsetof(RowWork, sums);

/// Rows that are sampled together. All memory is the device's, but for `results`: pinned host
/// memory. `params` and `states` have the same order.
struct SampleBatch {
  const float* logits = nullptr;  // (rows, ld)
  std::int64_t ld = 0;
  int vocabulary = 0;
  const SampleParams* params = nullptr;
  RowState* states = nullptr;
  const std::uint32_t* bitmaps = nullptr;  // one bit for each id of the vocabulary
  std::int64_t bitmap_words = 0;           // of a row
  float* copies = nullptr;                 // (rows that have one, vocabulary)
  RowWork* works = nullptr;                // one for each row of finish_rows; null: blocks is 1
  int blocks = 1;                          // that finish a row
  SampleResults results;
};

#ifdef __CUDACC__

inline constexpr unsigned kAllLanes = 0xffffffff;
inline constexpr int kLanes = 32;

/// Unsigned integers in the order of the floats. The sum makes -0 the same key as 0.
__device__ inline std::uint32_t key_of(float x) {
  const std::uint32_t bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ inline float value_of(std::uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/// Larger for better ids: by the logit, the lower id first among equals. Never the same for two ids
/// of a row, so that whatever is sorted by it comes out the same every time.
__device__ inline std::uint64_t order_of(std::uint32_t key, int id) {
  return static_cast<std::uint64_t>(key) << 32 | ~static_cast<std::uint32_t>(id);
}

__device__ inline std::uint32_t key_in(std::uint64_t order) {
  return static_cast<std::uint32_t>(order >> 32);
}

/// Whether bias and penalties have left no id of a valid row.
__device__ inline bool nothing_left(const SampleParams& params, const RowState& state) {
  return params.copy >= 0 && key_in(state.best) == key_of(-INFINITY);
}

__device__ inline int id_of(std::uint64_t order) {
  return static_cast<int>(~static_cast<std::uint32_t>(order));
}

/// A row of logits, after the repetition penalty if `bits` are given.
struct PenalisedRow {
  const float* logits;
  const std::uint32_t* bits;
  float penalty;
  int count;

  /// Of x = logits[id].
  __device__ float value(int id, float x) const {
    if (bits == nullptr || (bits[id >> 5] >> (id & 31) & 1) == 0) return x;
    return x > 0 ? x / penalty : x * penalty;
  }
};

__device__ inline PenalisedRow raw_row(const SampleBatch& batch, const SampleParams& params) {
  return {batch.logits + params.row * batch.ld, nullptr, 1, batch.vocabulary};
}

__device__ inline PenalisedRow penalised_row(const SampleBatch& batch, const SampleParams& params) {
  PenalisedRow row = raw_row(batch, params);
  if (params.bitmap >= 0) row.bits = batch.bitmaps + params.bitmap * batch.bitmap_words;
  row.penalty = params.penalty;
  return row;
}

__device__ inline float* copy_of(const SampleBatch& batch, const SampleParams& params) {
  return batch.copies + static_cast<std::int64_t>(params.copy) * batch.vocabulary;
}

/// The logits that the row is drawn by.
__device__ inline PenalisedRow drawn_row(const SampleBatch& batch, const SampleParams& params) {
  if (params.copy < 0) return penalised_row(batch, params);
  return {copy_of(batch, params), nullptr, 1, batch.vocabulary};
}

#endif

}  // namespace zi
