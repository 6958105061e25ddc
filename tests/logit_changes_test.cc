#include "zero_infer/logit_changes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "zero_infer/error.h"
#include "zero_infer/sampler.h"

// Rows name what differs from greedy; the rest has its default.
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

namespace zi {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

std::int32_t drawn_id(const std::vector<float>& logits, const SampleRow& row) {
  return sample_row(logits, row, {}, {}).id;
}

TEST(LogitChanges, HoldEachIdOfTheVocabularyOnce) {
  const std::vector<LogitBias> bias = {{4, 1.5f}, {-1, 9}, {5, 9}, {4, 0.25f}};
  const std::vector<std::int32_t> history = {0, 3, 4, 3, 7, -1, 3};
  const SampleRow row{.presence_penalty = 0.5f,
                      .frequency_penalty = 0.25f,
                      .history = history,
                      .new_tokens = 6,
                      .bias = bias};
  LogitChanges made;
  const auto changes = made.of(row, 5);
  ASSERT_EQ(changes.size(), 2u);
  EXPECT_EQ(changes[0].id, 4);
  EXPECT_EQ(changes[0].bias, 1.75f);
  EXPECT_EQ(changes[0].penalty, 0.75f);
  EXPECT_EQ(changes[1].id, 3);
  EXPECT_EQ(changes[1].bias, 0);
  EXPECT_EQ(changes[1].penalty, 1.25f);
}

TEST(LogitChanges, ForgetTheRowBefore) {
  const std::vector<LogitBias> bias = {{1, 10}, {8, 1}};
  const std::vector<std::int32_t> history = {1, 1, 0};
  const SampleRow row{.presence_penalty = 0.5f, .history = history, .new_tokens = 1};
  LogitChanges made;
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(made.of({.bias = bias}, 9).size(), 2u);
    const auto changes = made.of(row, 3);  // of a smaller vocabulary
    ASSERT_EQ(changes.size(), 1u);
    EXPECT_EQ(changes[0].id, 0);
    EXPECT_EQ(changes[0].bias, 0);
    EXPECT_EQ(changes[0].penalty, 0.5f);
  }
}

TEST(LogitChanges, MatterWhereARowHasThemAndNoTarget) {
  const std::vector<LogitBias> bias = {{1, 10}};
  const std::vector<std::int32_t> history = {1};
  EXPECT_FALSE(changes_logits({.history = history, .new_tokens = 1}));
  EXPECT_FALSE(changes_logits({.presence_penalty = 1, .history = history}));
  EXPECT_TRUE(changes_logits({.presence_penalty = 1, .history = history, .new_tokens = 1}));
  EXPECT_TRUE(changes_logits({.frequency_penalty = -1, .history = history, .new_tokens = 1}));
  EXPECT_TRUE(changes_logits({.bias = bias}));
  EXPECT_FALSE(changes_logits({.bias = bias, .target = 0}));
  EXPECT_TRUE(penalises_repetition({.repetition_penalty = 2, .history = history}));
  EXPECT_FALSE(penalises_repetition({.repetition_penalty = 2, .history = history, .target = 0}));
  EXPECT_FALSE(penalises_repetition({.repetition_penalty = 2}));
}

TEST(LogitChanges, PenaliseNewTokensOnceForPresenceAndEachTimeForFrequency) {
  const std::vector<std::int32_t> history = {3, 3, 3, 0, 1, 0};  // 3 stands in the prompt alone
  const std::vector<float> logits = {2.0f, 1.5f, 0.0f, 1.2f};
  SampleRow row{.history = history, .new_tokens = 3};
  row.presence_penalty = 0.4f;
  EXPECT_EQ(drawn_id(logits, row), 0) << "1.6, 1.1 and 1.2";
  row.presence_penalty = 0.9f;
  EXPECT_EQ(drawn_id(logits, row), 3) << "1.1, 0.6 and 1.2";
  row.presence_penalty = 0;
  row.frequency_penalty = 0.3f;
  EXPECT_EQ(drawn_id(logits, row), 0) << "1.4, 1.2 and 1.2";
  row.frequency_penalty = 0.41f;
  EXPECT_EQ(drawn_id(logits, row), 3) << "1.18, 1.09 and 1.2";
  row.frequency_penalty = -1;
  row.presence_penalty = 1.6f;
  EXPECT_EQ(drawn_id(logits, row), 0) << "2.4, 0.9 and 1.2";
  row.presence_penalty = 10;
  row.new_tokens = 0;
  EXPECT_EQ(drawn_id(logits, row), 0) << "no new tokens yet";
}

TEST(LogitChanges, AddTheBiasBeforeTheRepetitionPenalty) {
  const std::vector<LogitBias> bias = {{1, 3.0f}, {1, 1.0f}, {-1, 9.0f}, {4, 9.0f}, {2, 0.5f}};
  const std::vector<std::int32_t> history = {1};
  SampleRow row{.repetition_penalty = 1.2f, .history = history, .bias = bias};
  EXPECT_EQ(drawn_id({2, -1.5f, 1, 0}, row), 1) << "(-1.5 + 4) / 1.2 = 2.083";
  EXPECT_EQ(drawn_id({2.15f, -1.5f, 1, 0}, row), 0) << "-1.5 * 1.2 + 4 would be 2.2";
  row.repetition_penalty = 1;
  EXPECT_EQ(drawn_id({2.15f, -1.5f, 1, 0}, row), 1);
}

TEST(LogitChanges, SubtractThePenaltiesOfNewTokensAfterTheRepetitionPenalty) {
  const std::vector<std::int32_t> history = {0};
  const SampleRow row{
      .repetition_penalty = 2, .presence_penalty = 1, .history = history, .new_tokens = 1};
  EXPECT_EQ(drawn_id({4, 0.9f}, row), 0) << "4 / 2 - 1";
  EXPECT_EQ(drawn_id({4, 1.2f}, row), 1) << "(4 - 1) / 2 would be 1.5";
}

TEST(LogitChanges, NeverLetAForbiddenIdBeDrawn) {
  const std::vector<LogitBias> bias = {{0, kForbidden}, {3, 100}, {3, kForbidden}};
  SampleRow row{.temperature = 1, .bias = bias};
  for (; row.position < 500; ++row.position) {
    const std::int32_t id = drawn_id({90, 1, 1, 50}, row);
    EXPECT_TRUE(id == 1 || id == 2) << id;
  }
  EXPECT_EQ(drawn_id({90, 1, 2, 50}, {.bias = bias}), 2);
  EXPECT_EQ(drawn_id({90, kForbidden, 2, 50}, {.temperature = 1e30f, .bias = bias}), 2);
  const SampleRow score{.bias = bias, .target = 0};
  EXPECT_NEAR(sample_row(std::vector<float>{90, 1, 2, 90}, score, {}, {}).logprob, std::log(0.5),
              1e-6)
      << "a score is of the raw logits";
}

TEST(LogitChanges, GiveNoIdWhereTheyLeaveNone) {
  const std::vector<LogitBias> bias = {{0, kForbidden}, {1, kForbidden}};
  for (const float temperature : {0.0f, 1.0f}) {
    std::vector<std::int32_t> ids(2);
    std::vector<float> logprobs(2);
    const SampleRow row{.temperature = temperature, .bias = bias};
    const Sampled none = sample_row(std::vector<float>{1, 2}, row, ids, logprobs);
    EXPECT_EQ(none.id, kNoId);
    EXPECT_EQ(none.logprob, kForbidden);
    EXPECT_THAT(ids, testing::ElementsAre(1, 0)) << "the raw logits are there";
    EXPECT_EQ(drawn_id({1, 2, -9}, row), 2);
    EXPECT_EQ(drawn_id({1, 2, kForbidden}, row), kNoId);
  }
}

TEST(LogitChanges, LeaveTheReportedLogProbabilitiesAlone) {
  const std::vector<LogitBias> bias = {{0, 5}};
  std::vector<std::int32_t> ids(3);
  std::vector<float> logprobs(3);
  const std::vector<float> logits = {std::log(0.1f), std::log(0.6f), std::log(0.3f)};
  const Sampled sampled = sample_row(logits, {.bias = bias}, ids, logprobs);
  EXPECT_EQ(sampled.id, 0);
  EXPECT_NEAR(sampled.logprob, std::log(0.1), 1e-6);
  EXPECT_THAT(ids, testing::ElementsAre(1, 2, 0));
  EXPECT_NEAR(logprobs[0], std::log(0.6), 1e-6);
}

TEST(LogitChanges, AreRefusedWhereTheyAreNotNumbers) {
  const std::vector<std::int32_t> history = {0};
  EXPECT_THROW(drawn_id({1, 2}, {.history = history, .new_tokens = 2}), Error);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -kForbidden, 2e30f, -2e30f}) {
    const std::vector<LogitBias> bias = {{0, 1}, {7, bad}};
    EXPECT_THROW(drawn_id({1, 2}, {.bias = bias}), Error) << bad;
    EXPECT_THROW(drawn_id({1, 2}, {.presence_penalty = bad}), Error) << bad;
    EXPECT_THROW(drawn_id({1, 2}, {.frequency_penalty = bad}), Error) << bad;
  }
  EXPECT_THROW(drawn_id({1, 2}, {.presence_penalty = kForbidden}), Error);
}

}  // namespace
}  // namespace zi
