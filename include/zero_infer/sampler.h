#pragma once

#include <cstdint>
#include <span>

#include "zero_infer/ops.h"

namespace zi {

struct Sampled {
  std::int32_t id = 0;
  float logprob = 0;
};

/// The host's sampler for one row: `logits` holds the vocabulary (ids that may be sampled). In the
/// usual order: repetition penalty (Keskar et al. 2019), temperature, top-k, top-p (Holtzman et al.
/// 2020: the smallest set whose mass reaches p, at least one), then one draw by random_bits(seed,
/// sequence, position). Log-probabilities are of the raw logits. `top_ids` and `top_logprobs` (same
/// length K) take the K best ids, lower ids first among equals. Logits that hold NaN or +infinity,
/// or nothing but -infinity, give the id kNoId.
Sampled sample_row(std::span<const float> logits, const SampleRow& row,
                   std::span<std::int32_t> top_ids, std::span<float> top_logprobs);

}  // namespace zi
