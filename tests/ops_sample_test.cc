#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "ops_sampling.h"
#include "reference_sampler.h"
#include "zero_infer/error.h"

// Rows to sample name what differs from greedy; the rest has its default.
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

namespace zi {
namespace {

/// Rows of every kind, mixed; the n-th and its seed depend on n only. Some ask for `top` best ids,
/// some for fewer, some for none. `history` must outlive them.
std::vector<SampleRow> mixed_rows(std::size_t count, std::int64_t vocabulary,
                                  const std::vector<std::int32_t>& history, int top) {
  const SampleRow kinds[] = {
      {},
      {.repetition_penalty = 1.3f, .history = history},
      {.temperature = 1, .target = static_cast<std::int32_t>(vocabulary - 1)},
      {.temperature = 1},
      {.temperature = 0.7f, .top_k = 5},
      {.temperature = 1, .top_p = 0.9f},
      {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f},
      {.temperature = 1.2f, .top_p = 0.8f, .repetition_penalty = 1.2f, .history = history},
      {.temperature = 50, .top_p = 0.97f},
      {.temperature = 3, .top_k = 3000, .top_p = 0.99f},
      {.temperature = 1, .top_k = 1},
      {.temperature = 0.01f, .top_k = 2500, .repetition_penalty = 0.8f, .history = history},
      {.temperature = 2, .top_k = static_cast<int>(vocabulary), .top_p = 1e-6f},
      {.temperature = 1e30f, .top_k = 1000000},
      {.temperature = 1.1f, .min_p = 0.02f},
      {.temperature = 2, .top_k = 7, .top_p = 0.9f, .min_p = 0.001f},
  };
  std::vector<SampleRow> rows;
  for (std::size_t i = 0; i < count; ++i) {
    rows.push_back(kinds[i % std::size(kinds)]);
    rows.back().seed = 17;
    rows.back().sequence = i;
    rows.back().position = i % 5;
    rows.back().top = static_cast<int>(i + 2) % 3 * top / 2;
  }
  return rows;
}

TEST_P(SampleTest, ReportsTheBestIdsBelowTheVocabulary) {
  const std::int64_t ld = 12;
  std::vector<float> host_logits(2 * 12, 0.0f);
  host_logits[3] = 5;
  host_logits[7] = 4;
  host_logits[11] = 99;  // padding of the last slice
  host_logits[12 + 9] = 2;
  host_logits[12 + 2] = 2;
  const Buffer logits = upload(host_logits);
  Buffer memory = device->allocate_pinned(4096);
  SampleResults results;
  results.ids = memory.as<std::int32_t>();
  results.logprobs = memory.as<float>() + 16;
  results.top = 2;
  results.top_ids = memory.as<std::int32_t>() + 32;
  results.top_logprobs = memory.as<float>() + 64;
  std::vector<SampleRow> rows = {{.top = 2}, {.target = 9, .top = 2}};
  ops->sample(logits.as<float>(), ld, 10, rows, results, *stream);
  rows.clear();  // copied before the call returned
  stream->synchronize();
  EXPECT_EQ(results.ids[0], 3);
  EXPECT_NEAR(results.logprobs[0], 5 - std::log(std::exp(5.0) + std::exp(4.0) + 8), 1e-5);
  EXPECT_EQ(results.ids[1], 9);
  EXPECT_NEAR(results.logprobs[1], 2 - std::log(2 * std::exp(2.0) + 8), 1e-5);
  EXPECT_EQ(results.top_ids[0], 3);
  EXPECT_EQ(results.top_ids[1], 7);
  EXPECT_EQ(results.top_ids[2], 2);
  EXPECT_EQ(results.top_ids[3], 9);
}

TEST_P(SampleTest, UsesTheHistoryAsItWasAtTheCall) {
  std::vector<float> host_logits = {1, 3, 2, 0};
  const Buffer logits = upload(host_logits);
  Buffer memory = device->allocate_pinned(64);
  SampleResults results;
  results.ids = memory.as<std::int32_t>();
  results.logprobs = memory.as<float>() + 4;
  std::vector<std::int32_t> history = {1};
  SampleRow row;
  row.repetition_penalty = 2;
  row.history = history;
  ops->sample(logits.as<float>(), 4, 4, std::span(&row, 1), results, *stream);
  history[0] = 2;
  stream->synchronize();
  EXPECT_EQ(results.ids[0], 2);
}

TEST_P(SampleTest, DrawsAsTheHostDoes) {
  for (const std::int64_t vocabulary : {1, 2, 31, 33, 1023, 8193, 20011}) {
    const std::int64_t ld = vocabulary + vocabulary % 5;
    const std::vector<std::int32_t> history = {0, 5, 5, 0, 30, 700, 5, -1, 2147483647};
    const auto logits = floats(28 * ld, 3);
    expect_samples_of_the_host(*this, logits, ld, vocabulary,
                               mixed_rows(28, vocabulary, history, 5), 5);
  }
}

TEST_P(SampleTest, KeepsTheIdsOfMinPBeforeTopKAndTopP) {
  const std::vector<std::int32_t> history = {0, 5, 5, 30, 700};
  for (const std::int64_t vocabulary : {1, 33, 1023, 20011}) {
    std::vector<SampleRow> rows;
    for (const float min_p : {0.0f, 1e-30f, 1e-3f, 0.1f, 0.9f, 1.0f}) {
      for (const SampleRow& kind :
           {SampleRow{.temperature = 1},
            {.temperature = 1, .top_k = 5},
            {.temperature = 1.5f, .top_k = 4000, .top_p = 0.9f},
            {.temperature = 20, .top_p = 0.7f, .repetition_penalty = 1.5f, .history = history},
            {},
            {.temperature = 1, .target = 0}}) {
        rows.push_back(kind);
        rows.back().min_p = min_p;
        rows.back().sequence = rows.size();
      }
    }
    const auto logits = floats(static_cast<std::int64_t>(rows.size()) * vocabulary, 3);
    expect_samples_of(test::naive_sample_row, *this, logits, vocabulary, vocabulary, rows, 0);
    auto steps = logits;  // equals: all of them are kept, or none
    for (float& x : steps) x = std::round(x);
    expect_samples_of_the_host(*this, steps, vocabulary, vocabulary, rows, 0);
  }
}

TEST_P(SampleTest, DrawsFromALargeVocabulary) {
  const std::int64_t vocabulary = 250680;
  const std::int64_t ld = 250880;
  std::vector<std::int32_t> history(1000);
  for (std::size_t i = 0; i < history.size(); ++i) {
    history[i] = static_cast<std::int32_t>(i * i % 250680);
  }
  auto logits = floats(16 * ld, 3);
  for (float& x : logits) x += 250;  // real models' logits are far from 0
  expect_samples_of_the_host(*this, logits, ld, vocabulary,
                             mixed_rows(16, vocabulary, history, 100), 100);
}

/// A GPU has more blocks for a row among fewer rows.
TEST_P(SampleTest, DrawsTheSameFromARowAloneAndAmongOthers) {
  const std::int64_t vocabulary = 70001;
  const std::vector<std::int32_t> history = {0, 5, 5, 30, 700, 69000};
  auto rows = mixed_rows(16, vocabulary, history, 30);
  // All weights are equal: the cut is among equal logits, in the middle of a wide range of others.
  rows.push_back({.temperature = 1e30f, .top_p = 0.5f, .seed = 17, .sequence = 16});
  const auto normal = floats(static_cast<std::int64_t>(rows.size()) * vocabulary, 3);
  auto steps = normal;  // thousands of equals at any cut
  for (float& x : steps) x = std::round(x);
  const std::vector<float> equal(normal.size(), -3.5f);
  for (const auto& logits : {normal, steps, equal}) {
    expect_samples_of_the_host(*this, logits, vocabulary, vocabulary, rows, 30);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto begin = logits.begin() + static_cast<std::ptrdiff_t>(i) * vocabulary;
      expect_samples_of_the_host(*this, {begin, begin + vocabulary}, vocabulary, vocabulary,
                                 {rows[i]}, 30);
    }
  }
}

TEST_P(SampleTest, TakesTheLowerIdsAmongEquals) {
  const std::int64_t vocabulary = 9001;
  const std::vector<std::int32_t> history = {1, 2, 3, 9000};
  // Whole numbers: any k cuts through equals. Then nothing but equals, zeros of either sign, and
  // mostly -infinity.
  auto steps = floats(28 * vocabulary, 2);
  for (float& x : steps) x = std::round(x);
  const std::vector<float> equal(steps.size(), 1.5f);
  auto zeros = steps;
  for (float& x : zeros) x = x > 0 ? 0.0f : -0.0f;
  auto few = steps;
  for (float& x : few) x = x > 3 ? x : -std::numeric_limits<float>::infinity();
  for (const auto& logits : {steps, equal, zeros, few}) {
    expect_samples_of_the_host(*this, logits, vocabulary, vocabulary,
                               mixed_rows(28, vocabulary, history, 20), 20);
  }
  std::vector<SampleRow> rows(28);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i] = {.temperature = 1, .top_k = static_cast<int>(1 + i * 321), .seed = 3, .sequence = i};
  }
  expect_samples_of_the_host(*this, equal, vocabulary, vocabulary, rows, 0);
  expect_samples_of_the_host(*this, steps, vocabulary, vocabulary, rows, 0);
}

TEST_P(SampleTest, ReportsNoMoreIdsThanThereAre) {
  const auto logits = floats(3 * 10);
  expect_samples_of_the_host(*this, logits, 10, 7, mixed_rows(3, 7, {}, 9), 9);
}

TEST_P(SampleTest, TakesManyRowsAtOnce) {
  const std::vector<std::int32_t> history = {3, 60, 3, 17};
  const auto few = floats(70 * 3001, 3);
  expect_samples_of_the_host(*this, few, 3001, 3000, mixed_rows(70, 3000, history, 3), 3);
  const auto many = floats(1100 * 67, 3);
  expect_samples_of_the_host(*this, many, 67, 61, mixed_rows(1100, 61, history, 3), 3);
}

TEST_P(SampleTest, TakesLongHistories) {
  const std::int64_t vocabulary = 40001;
  std::vector<std::vector<std::int32_t>> histories(4, std::vector<std::int32_t>(100000));
  std::vector<SampleRow> rows;
  for (auto& history : histories) {
    for (auto& id : history) id = static_cast<std::int32_t>(random() % 30000);
    rows.push_back({.temperature = rows.size() % 2 == 0 ? 0.0f : 1.0f,
                    .repetition_penalty = 1.5f,
                    .history = history,
                    .top = 2});
  }
  auto logits = floats(4 * vocabulary, 2);
  expect_samples_of_the_host(*this, logits, vocabulary, vocabulary, rows, 2);
}

TEST_P(SampleTest, DrawsAsTheHostDoesAtTheLimitsOfWhatIsAccepted) {
  // The options' limits are 1e-30 and 1e30, and 0 for the temperature.
  const std::int64_t vocabulary = 5003;
  const std::vector<std::int32_t> history = {0, 7, 7, 30, 700, 5002};
  std::vector<SampleRow> rows;
  for (const float temperature : {0.0f, 1e-30f, 1.0f, 1e30f}) {
    for (const float penalty : {1.0f, 1e-30f, 1e30f}) {
      for (const float top_p : {1.0f, 1e-30f}) {
        for (const auto& [top_k, min_p] : {std::pair{0, 0.0f}, {3, 0.0f}, {0, 1e-30f}, {3, 1.0f}}) {
          rows.push_back({.temperature = temperature,
                          .top_k = top_k,
                          .top_p = top_p,
                          .min_p = min_p,
                          .repetition_penalty = penalty,
                          .seed = 5,
                          .sequence = rows.size(),
                          .history = history});
        }
      }
    }
  }
  // With the second scale the penalty leaves float32.
  for (const float scale : {3.0f, 3e9f}) {
    auto logits = floats(static_cast<std::int64_t>(rows.size()) * vocabulary, 1);
    for (float& x : logits) x *= scale;
    expect_samples_of_the_host(*this, logits, vocabulary, vocabulary, rows, 0);
  }
}

TEST_P(SampleTest, RefusesATargetBeyondTheVocabularyAndMoreBestIdsThanThereIsRoomFor) {
  const Buffer logits = upload(floats(2 * 8));
  Buffer memory = device->allocate_pinned(64);
  SampleResults results;
  results.ids = memory.as<std::int32_t>();
  results.logprobs = memory.as<float>() + 2;
  results.top = 2;
  results.top_ids = memory.as<std::int32_t>() + 4;
  results.top_logprobs = memory.as<float>() + 8;
  const auto sample = [&](const SampleRow& second) {
    const std::vector<SampleRow> rows = {{}, second};
    ops->sample(logits.as<float>(), 8, 7, rows, results, *stream);
  };
  EXPECT_THROW(sample({.target = 7}), Error);
  EXPECT_THROW(sample({.top = 3}), Error);
  EXPECT_THROW(sample({.top = -1}), Error);
  EXPECT_NO_THROW(sample({.target = 6, .top = 2}));
  stream->synchronize();
  EXPECT_EQ(results.ids[1], 6);
}

TEST_P(SampleTest, GivesNoIdToARowThatIsNotOfNumbers) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity}) {
    std::vector<float> host_logits(3 * 8, 1.0f);
    std::fill_n(host_logits.begin() + 8, 8, bad);
    const Buffer logits = upload(host_logits);
    Buffer memory = device->allocate_pinned(64);
    SampleResults results;
    results.ids = memory.as<std::int32_t>();
    results.logprobs = memory.as<float>() + 4;
    for (const SampleRow& kind : {SampleRow{}, {.temperature = 1}, {.target = 0}}) {
      const std::vector<SampleRow> rows(3, kind);
      ops->sample(logits.as<float>(), 8, 8, rows, results, *stream);
      stream->synchronize();
      EXPECT_EQ(results.ids[1], kNoId);
      EXPECT_TRUE(std::isnan(results.logprobs[1]));
      EXPECT_GE(results.ids[0], 0);
      EXPECT_NEAR(results.logprobs[2], -std::log(8.0), 1e-5);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, SampleTest, ::testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace zi
