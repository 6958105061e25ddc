#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <span>
#include <vector>

#include "ops_fixture.h"
#include "zero_infer/sampler.h"

/// What the tests of Ops::sample share.
namespace zi {

struct SampleTest : OpsTest {};

/// What a row is compared with: the host's sampler, or the naive reference.
using RowSampler = Sampled(std::span<const float>, const SampleRow&, std::span<std::int32_t>,
                           std::span<float>);

/// Samples `rows` from logits (rows, ld), with room for `top` best ids of each, and expects what
/// `reference` says of each.
inline void expect_samples_of(RowSampler& reference, SampleTest& test,
                              const std::vector<float>& host_logits, std::int64_t ld,
                              std::int64_t vocabulary, const std::vector<SampleRow>& rows,
                              int top) {
  const Buffer logits = test.upload(host_logits);
  const std::size_t count = rows.size();
  const std::size_t tops = count * static_cast<std::size_t>(top);
  Buffer memory = test.device->allocate_pinned((2 * count + 2 * tops) * 4 + kGuardBytes);
  std::fill_n(memory.data(), memory.bytes(), kGuard);
  SampleResults results;
  results.ids = memory.as<std::int32_t>();
  results.logprobs = memory.as<float>() + count;
  results.top = top;
  results.top_ids = memory.as<std::int32_t>() + 2 * count;
  results.top_logprobs = memory.as<float>() + 2 * count + tops;
  test.ops->sample(logits.as<float>(), ld, vocabulary, rows, results, *test.stream);
  test.stream->synchronize();

  const auto expect_logprob = [](float got, float want) {
    // float32 sums of exponents, each right to a few units of 2^-24, and logits of some hundreds.
    const bool equal = got == want;  // -infinity, too
    ASSERT_TRUE(equal || std::abs(got - want) < 1e-4f) << got << " instead of " << want;
  };
  std::int32_t untouched = 0;
  std::memset(&untouched, std::to_integer<int>(kGuard), sizeof(untouched));
  for (std::size_t i = 0; i < count; ++i) {
    const SampleRow& row = rows[i];
    SCOPED_TRACE(fmt::format(
        "row {} of {}, vocabulary {}: temperature {}, top_k {}, top_p {}, min_p {}, repetition {} "
        "of {} ids, presence {} and frequency {} of {} new ones, {} biases, target {}, top {}",
        i, count, vocabulary, row.temperature, row.top_k, row.top_p, row.min_p,
        row.repetition_penalty, row.history.size(), row.presence_penalty, row.frequency_penalty,
        row.new_tokens, row.bias.size(), row.target, row.top));
    std::vector<std::int32_t> top_ids(static_cast<std::size_t>(row.top));
    std::vector<float> top_logprobs(top_ids.size());
    const Sampled want = reference({host_logits.data() + i * static_cast<std::size_t>(ld),
                                    static_cast<std::size_t>(vocabulary)},
                                   row, top_ids, top_logprobs);
    ASSERT_EQ(results.ids[i], want.id);
    expect_logprob(results.logprobs[i], want.logprob);
    std::size_t at = i * static_cast<std::size_t>(top);
    for (std::size_t k = 0; k < top_ids.size(); ++k, ++at) {
      ASSERT_EQ(results.top_ids[at], top_ids[k]) << k;
      expect_logprob(results.top_logprobs[at], top_logprobs[k]);
    }
    for (; at < (i + 1) * static_cast<std::size_t>(top); ++at) {
      ASSERT_EQ(results.top_ids[at], untouched) << "beyond what the row asks for";
      ASSERT_EQ(std::memcmp(results.top_logprobs + at, &untouched, sizeof(untouched)), 0);
    }
  }
  for (std::size_t i = (2 * count + 2 * tops) * 4; i < memory.bytes(); ++i) {
    ASSERT_EQ(memory.data()[i], kGuard) << "a byte after the results was changed";
  }
}

inline void expect_samples_of_the_host(SampleTest& test, const std::vector<float>& host_logits,
                                       std::int64_t ld, std::int64_t vocabulary,
                                       const std::vector<SampleRow>& rows, int top) {
  expect_samples_of(sample_row, test, host_logits, ld, vocabulary, rows, top);
}

}  // namespace zi
