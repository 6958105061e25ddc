#pragma once

#include <cstdint>
#include <span>

#include "zero_infer/sampler.h"

namespace zi::test {

/// What Ops::sample promises of one row of finite logits, of which bias leaves some, written down
/// naively: everything sorted, probabilities in double precision. The parameters are those of
/// zi::sample_row.
Sampled naive_sample_row(std::span<const float> logits, const SampleRow& row,
                         std::span<std::int32_t> top_ids, std::span<float> top_logprobs);

}  // namespace zi::test
