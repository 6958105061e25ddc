#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops_sampling.h"
#include "reference_sampler.h"
#include "zero_infer/error.h"

// Rows to sample name what differs from greedy; the rest has its default.
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

namespace zi {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

/// Rows of which some have bias, some penalties, some both and some neither.
struct ChangedRowsTest : SampleTest {
  /// Lists that rows point to.
  std::vector<std::int32_t> history;
  std::vector<LogitBias> bias;
  std::vector<LogitBias> forbidden;

  /// Ids of the lists are below 40 and `vocabulary`, or far beyond it. No bias is for the id 0.
  void make_lists(std::int64_t vocabulary) {
    const auto below = static_cast<unsigned>(std::min<std::int64_t>(vocabulary, 40));
    const auto any_id = [&] { return static_cast<std::int32_t>(random() % below); };
    history = {-1, 2147483647};
    for (int i = 0; i < 50; ++i) history.push_back(any_id());
    bias = {{-5, 1}, {2147483647, 1}};
    for (int i = 0; i < 20; ++i) bias.push_back({any_id(), floats(1, 3).front()});
    bias.push_back({static_cast<std::int32_t>(vocabulary - 1), 12});
    std::erase_if(bias, [](const LogitBias& b) { return b.id == 0; });
    forbidden = bias;
    for (std::size_t i = 0; i < forbidden.size(); i += 2) forbidden[i].value = kForbidden;
  }

  /// The n-th and its seed depend on n and the lists only. make_lists comes first.
  std::vector<SampleRow> mixed_rows(std::size_t count, int top) {
    const SampleRow kinds[] = {
        {.bias = bias},
        {},
        {.temperature = 1, .bias = forbidden},
        {.temperature = 1, .presence_penalty = 0.7f, .history = history, .new_tokens = 9},
        {.repetition_penalty = 1.3f, .history = history, .new_tokens = 50},
        {.frequency_penalty = 0.4f, .history = history, .new_tokens = 52},
        {.temperature = 1, .bias = bias, .target = 0},
        {.temperature = 0.8f,
         .top_k = 20,
         .top_p = 0.9f,
         .min_p = 0.01f,
         .repetition_penalty = 1.2f,
         .presence_penalty = -0.3f,
         .frequency_penalty = 0.2f,
         .history = history,
         .new_tokens = 30,
         .bias = forbidden},
        {.temperature = 1},
        {.repetition_penalty = 0.7f, .history = history, .bias = bias},
        {.temperature = 1.5f,
         .min_p = 0.05f,
         .frequency_penalty = -0.5f,
         .history = history,
         .new_tokens = 12},
        {.temperature = 2, .top_p = 0.8f, .presence_penalty = 1, .bias = bias},
        {.temperature = 1e30f, .top_k = 3000, .bias = forbidden},
    };
    std::vector<SampleRow> rows;
    for (std::size_t i = 0; i < count; ++i) {
      rows.push_back(kinds[i % std::size(kinds)]);
      rows.back().seed = 23;
      rows.back().sequence = i;
      rows.back().position = i % 7;
      rows.back().top = static_cast<int>(i) % 4 * top / 3;
    }
    return rows;
  }
};

TEST_P(ChangedRowsTest, AreDrawnAsTheReferenceDoesAmongOthers) {
  for (const std::int64_t vocabulary : {1, 2, 31, 33, 1023, 8193, 20011}) {
    make_lists(vocabulary);
    const std::int64_t ld = vocabulary + vocabulary % 5;
    const auto rows = mixed_rows(39, 5);
    const auto logits = floats(39 * ld, 3);
    expect_samples_of(test::naive_sample_row, *this, logits, ld, vocabulary, rows, 5);
  }
}

TEST_P(ChangedRowsTest, TakeTheLowerIdsAmongEquals) {
  const std::int64_t vocabulary = 9001;
  make_lists(vocabulary);
  for (auto* list : {&bias, &forbidden}) {
    for (LogitBias& b : *list) b.value = std::round(b.value);
  }
  auto rows = mixed_rows(39, 20);
  for (SampleRow& row : rows) {
    if (row.presence_penalty != 0) row.presence_penalty = 1;
    if (row.frequency_penalty != 0) row.frequency_penalty = 1;
    if (row.repetition_penalty != 1) row.repetition_penalty = 2;
  }
  auto logits = floats(39 * vocabulary, 2);
  for (float& x : logits) x = std::round(x);
  expect_samples_of_the_host(*this, logits, vocabulary, vocabulary, rows, 20);
}

TEST_P(ChangedRowsTest, MayBeMoreThanThereIsMemoryForAtOnce) {
  // 64 MiB of float32 logits are 66 such rows.
  const std::int64_t vocabulary = 250680;
  make_lists(vocabulary);
  auto rows = mixed_rows(80, 3);
  const auto row = floats(vocabulary, 3);
  std::vector<float> logits;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    logits.insert(logits.end(), row.begin() + static_cast<std::ptrdiff_t>(i * 100), row.end());
    logits.insert(logits.end(), row.begin(), row.begin() + static_cast<std::ptrdiff_t>(i * 100));
    if (rows[i].target < 0) rows[i].bias = rows[i].bias.empty() ? bias : rows[i].bias;
  }
  expect_samples_of_the_host(*this, logits, vocabulary, vocabulary, rows, 3);
}

TEST_P(ChangedRowsTest, MayHaveLongLists) {
  const std::int64_t vocabulary = 40001;
  make_lists(vocabulary);
  for (std::int32_t id = 0; id < 20000; ++id) bias.push_back({2 * id, floats(1).front()});
  std::vector<std::vector<std::int32_t>> histories(5, std::vector<std::int32_t>(100000));
  std::vector<SampleRow> rows;
  for (auto& list : histories) {
    for (auto& id : list) id = static_cast<std::int32_t>(random() % 30000);
    rows.push_back({.temperature = rows.size() % 2 == 0 ? 0.0f : 1.0f,
                    .repetition_penalty = rows.size() == 3 ? 1.5f : 1.0f,
                    .presence_penalty = 0.5f,
                    .frequency_penalty = 0.125f,
                    .history = list,
                    .new_tokens = 90000,
                    .bias = bias,
                    .top = 2});
    rows.push_back({.temperature = 1, .sequence = rows.size()});
  }
  const auto logits = floats(static_cast<std::int64_t>(rows.size()) * vocabulary, 2);
  expect_samples_of(test::naive_sample_row, *this, logits, vocabulary, vocabulary, rows, 2);
}

TEST_P(ChangedRowsTest, AreDrawnAsTheHostDoesAtTheLimitsOfWhatIsAccepted) {
  const std::int64_t vocabulary = 5003;
  make_lists(vocabulary);
  const std::vector<LogitBias> far = {{3, 1e30f}, {4, -1e30f}, {3, 1e30f}, {5, 1}};
  std::vector<SampleRow> rows;
  for (const float temperature : {0.0f, 1e-30f, 1.0f, 1e30f}) {
    for (const float penalty : {1e30f, -1e30f, 1e-30f}) {
      for (const float repetition : {1.0f, 1e-30f, 1e30f}) {
        for (const bool biased : {false, true}) {
          rows.push_back({.temperature = temperature,
                          .top_k = rows.size() % 4 == 0 ? 3 : 0,
                          .repetition_penalty = repetition,
                          .presence_penalty = penalty,
                          .frequency_penalty = penalty,
                          .sequence = rows.size(),
                          .history = history,
                          .new_tokens = 20});
          if (biased) rows.back().bias = far;
        }
      }
    }
  }
  const auto logits = floats(static_cast<std::int64_t>(rows.size()) * vocabulary, 3);
  expect_samples_of_the_host(*this, logits, vocabulary, vocabulary, rows, 0);
}

TEST_P(ChangedRowsTest, HaveNoIdWhereTheBiasLeavesNone) {
  std::vector<LogitBias> all;
  for (std::int32_t id = 0; id < 9; ++id) all.push_back({id, kForbidden});
  const std::vector<LogitBias> all_but_one(all.begin() + 1, all.end());
  std::vector<SampleRow> rows;
  for (const float temperature : {0.0f, 1.0f, 1e30f}) {
    rows.push_back({.temperature = temperature, .bias = all, .top = 3});
    rows.push_back({.temperature = temperature, .bias = all_but_one});
    rows.push_back({.temperature = temperature, .bias = all, .target = 4, .top = 1});
  }
  // As the host: kNoId and -infinity, id 0, and the score. The best ids are of the raw logits.
  const auto logits = floats(static_cast<std::int64_t>(rows.size()) * 9, 3);
  expect_samples_of_the_host(*this, logits, 9, 9, rows, 3);
  std::vector<std::int32_t> ids(3);
  std::vector<float> logprobs(3);
  const Sampled none = sample_row(std::span(logits).first(9), rows[0], ids, logprobs);
  EXPECT_EQ(none.id, kNoId);
  EXPECT_EQ(none.logprob, kForbidden);
}

TEST_P(ChangedRowsTest, AreThoseOfTheCall) {
  const Buffer logits = upload(std::vector<float>{1, 3, 2, 0, 1, 3, 2, 0});
  Buffer memory = device->allocate_pinned(64);
  SampleResults results;
  results.ids = memory.as<std::int32_t>();
  results.logprobs = memory.as<float>() + 4;
  std::vector<LogitBias> list = {{3, 9}};
  std::vector<std::int32_t> tokens = {2, 1};
  std::vector<SampleRow> rows = {{.bias = list},
                                 {.presence_penalty = 2, .history = tokens, .new_tokens = 1}};
  ops->sample(logits.as<float>(), 4, 4, rows, results, *stream);
  rows.clear();
  list[0] = {0, 99};
  tokens[1] = 2;
  stream->synchronize();
  EXPECT_EQ(results.ids[0], 3);
  EXPECT_EQ(results.ids[1], 2);
}

TEST_P(ChangedRowsTest, AreRefusedWhereTheyAreNotNumbers) {
  const Buffer logits = upload(floats(2 * 8));
  Buffer memory = device->allocate_pinned(64);
  SampleResults results;
  results.ids = memory.as<std::int32_t>();
  results.logprobs = memory.as<float>() + 2;
  const std::vector<std::int32_t> tokens = {1};
  const std::vector<LogitBias> infinite = {{1, -kForbidden}};
  const auto sample = [&](const SampleRow& second) {
    const std::vector<SampleRow> rows = {{}, second};
    ops->sample(logits.as<float>(), 8, 8, rows, results, *stream);
  };
  EXPECT_THROW(sample({.bias = infinite}), Error);
  EXPECT_THROW(sample({.presence_penalty = std::numeric_limits<float>::quiet_NaN()}), Error);
  EXPECT_THROW(sample({.frequency_penalty = 2e30f}), Error);
  EXPECT_THROW(sample({.history = tokens, .new_tokens = 2}), Error);
  EXPECT_NO_THROW(sample({.presence_penalty = 1, .history = tokens, .new_tokens = 1}));
  stream->synchronize();
}

INSTANTIATE_TEST_SUITE_P(Backends, ChangedRowsTest, ::testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace zi
