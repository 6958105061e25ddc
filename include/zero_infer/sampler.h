#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "zero_infer/ops.h"

namespace zi {

struct Sampled {
  std::int32_t id = 0;
  float logprob = 0;
};

/// The host's sampler for one row: `logits` holds the vocabulary (ids that may be sampled). In the
/// usual order: bias, repetition penalty (Keskar et al. 2019), frequency and presence penalty,
/// temperature, min-p (Nguyen et al. 2024: ids at least min_p times as likely as the best one),
/// top-k, top-p (Holtzman et al. 2020: the smallest set whose mass reaches p, at least one), then
/// one draw by random_bits(seed, sequence, position). Log-probabilities are of the raw logits.
/// `top_ids` and `top_logprobs` (same length K, whatever row.top says) take the K best ids, lower
/// ids first among equals. Logits that hold NaN or +infinity, or nothing but -infinity, give the id
/// kNoId and NaN; where bias, presence or frequency penalty leave nothing but -infinity, it is
/// kNoId and -infinity. Throws Error as check_sample_row does.
Sampled sample_row(std::span<const float> logits, const SampleRow& row,
                   std::span<std::int32_t> top_ids, std::span<float> top_logprobs);

/// Throws Error for a target beyond the vocabulary, for more new tokens than the history has, and
/// for a bias (other than -infinity), a presence or a frequency penalty that is NaN or beyond 1e30.
void check_sample_row(const SampleRow& row, std::size_t vocabulary);

/// The least (logit - best logit) / temperature of the ids that row.min_p keeps. Every backend
/// compares in float32 with this value, so that all keep the same ids.
inline float least_exponent(const SampleRow& row) {
  return row.min_p > 0 ? std::log(std::min(row.min_p, 1.0f))
                       : -std::numeric_limits<float>::infinity();
}

}  // namespace zi
