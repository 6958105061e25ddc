#include "zero_infer/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <type_traits>
#include <vector>

#include "reference_sampler.h"
#include "zero_infer/error.h"
#include "zero_infer/random.h"

// Rows name what differs from greedy; the rest has its default.
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

namespace zi {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// Logits whose softmax is `p`, shifted by a constant that must not matter.
std::vector<float> logits_of(const std::vector<double>& p, float shift = 7) {
  std::vector<float> logits;
  for (const double value : p) logits.push_back(static_cast<float>(std::log(value)) + shift);
  return logits;
}

Sampled sample(const std::vector<float>& logits, const SampleRow& row) {
  return sample_row(logits, row, {}, {});
}

/// How often each id is drawn at positions 0 .. draws - 1.
std::map<std::int32_t, double> frequencies(const std::vector<float>& logits, SampleRow row,
                                           int draws = 20000) {
  std::map<std::int32_t, double> out;
  for (int i = 0; i < draws; ++i) {
    row.position = static_cast<std::uint64_t>(i);
    out[sample(logits, row).id] += 1.0 / draws;
  }
  return out;
}

/// 20,000 draws: the standard deviation of a frequency is at most sqrt(0.25 / 20000) = 0.0035.
constexpr double kTolerance = 4 * 0.0035;

TEST(Sampler, TakesTheLargestLogitAndTheLowestIdAmongEquals) {
  EXPECT_EQ(sample({1, 5, 2, 5}, {}).id, 1);
  std::vector<float> logits(1001, -3.0f);
  for (const std::size_t at : {0, 31, 32, 500, 999, 1000}) {
    std::vector<float> one = logits;
    one[at] = -1;
    EXPECT_EQ(sample(one, {}).id, static_cast<std::int32_t>(at));
  }
}

TEST(Sampler, ReportsLogProbabilitiesOfTheRawLogits) {
  const auto logits = logits_of({0.1, 0.6, 0.3});
  EXPECT_NEAR(sample(logits, {}).logprob, std::log(0.6), 1e-6);
  const std::vector<std::int32_t> history = {0, 1, 2};
  SampleRow row{.temperature = 0.3f, .top_k = 1, .repetition_penalty = 1.5f, .history = history};
  const Sampled sampled = sample(logits, row);
  EXPECT_NEAR(sampled.logprob, std::log(sampled.id == 0 ? 0.1 : sampled.id == 1 ? 0.6 : 0.3), 1e-6);
  EXPECT_EQ(sample({kInfinity * -1, 0}, {.target = 0}).logprob, -kInfinity);
}

TEST(Sampler, ReportsTheTargetWithoutADraw) {
  const auto logits = logits_of({0.1, 0.6, 0.3});
  const Sampled sampled = sample(logits, {.temperature = 1, .target = 2});
  EXPECT_EQ(sampled.id, 2);
  EXPECT_NEAR(sampled.logprob, std::log(0.3), 1e-6);
  EXPECT_THROW(sample(logits, {.target = 3}), Error);
}

TEST(Sampler, ReportsTheBestIdsInOrder) {
  const std::vector<float> logits = {0, 3, 1, 3, 2};
  std::vector<std::int32_t> ids(3);
  std::vector<float> logprobs(3);
  const Sampled sampled = sample_row(logits, {}, ids, logprobs);
  EXPECT_THAT(ids, testing::ElementsAre(1, 3, 4));
  EXPECT_EQ(logprobs[0], sampled.logprob);
  EXPECT_EQ(logprobs[0], logprobs[1]);
  EXPECT_NEAR(logprobs[2], logprobs[0] - 1, 1e-6);
}

TEST(Sampler, FillsUpWhereFewerIdsExistThanAskedFor) {
  std::vector<std::int32_t> ids(3, 9);
  std::vector<float> logprobs(3, 9);
  sample_row(std::vector<float>{1, 2}, {}, ids, logprobs);
  EXPECT_THAT(ids, testing::ElementsAre(1, 0, -1));
  EXPECT_EQ(logprobs[2], -kInfinity);
  EXPECT_THROW(sample_row(std::vector<float>{1, 2}, {}, ids, {}), Error);
}

TEST(Sampler, DrawsByTheSoftmaxOfTheTemperature) {
  const auto logits = logits_of({0.1, 0.6, 0.3});
  auto drawn = frequencies(logits, {.temperature = 1, .seed = 1});
  EXPECT_NEAR(drawn[0], 0.1, kTolerance);
  EXPECT_NEAR(drawn[1], 0.6, kTolerance);
  EXPECT_NEAR(drawn[2], 0.3, kTolerance);
  // Temperature 0.5 squares the weights: 0.01, 0.36 and 0.09 of 0.46.
  drawn = frequencies(logits, {.temperature = 0.5f, .seed = 2});
  EXPECT_NEAR(drawn[0], 0.01 / 0.46, kTolerance);
  EXPECT_NEAR(drawn[1], 0.36 / 0.46, kTolerance);
  EXPECT_NEAR(drawn[2], 0.09 / 0.46, kTolerance);
}

TEST(Sampler, KeepsTheTopK) {
  const auto logits = logits_of({0.1, 0.4, 0.2, 0.3});
  auto drawn = frequencies(logits, {.temperature = 1, .top_k = 2, .seed = 3});
  EXPECT_EQ(drawn.size(), 2u);
  EXPECT_NEAR(drawn[1], 4.0 / 7, kTolerance);
  EXPECT_NEAR(drawn[3], 3.0 / 7, kTolerance);
  EXPECT_EQ(frequencies({2, 5, 5, 1}, {.temperature = 9, .top_k = 1}, 200).size(), 1u);
  EXPECT_EQ(sample({2, 5, 5, 1}, {.temperature = 9, .top_k = 1}).id, 1);
  EXPECT_EQ(frequencies(logits, {.temperature = 1, .top_k = 99, .seed = 3}).size(), 4u);
}

TEST(Sampler, KeepsTheSmallestSetWhoseMassReachesTopP) {
  const auto logits = logits_of({0.1, 0.4, 0.2, 0.3});
  auto drawn = frequencies(logits, {.temperature = 1, .top_p = 0.65f, .seed = 4});
  EXPECT_EQ(drawn.size(), 2u);
  EXPECT_NEAR(drawn[1], 4.0 / 7, kTolerance);
  drawn = frequencies(logits, {.temperature = 1, .top_p = 0.75f, .seed = 4});
  EXPECT_EQ(drawn.size(), 3u);
  EXPECT_EQ(drawn.count(0), 0u);
  drawn = frequencies(logits, {.temperature = 1, .top_p = 0, .seed = 4}, 200);
  EXPECT_EQ(drawn.size(), 1u);
  EXPECT_EQ(drawn.count(1), 1u);
}

TEST(Sampler, MeasuresTopPAfterTopK) {
  // Of the best two, 4/7 and 3/7, the first alone reaches 0.5; of all four it would not.
  const auto logits = logits_of({0.1, 0.4, 0.2, 0.3});
  const SampleRow row{.temperature = 1, .top_k = 2, .top_p = 0.5f};
  EXPECT_EQ(frequencies(logits, row, 200).size(), 1u);
}

TEST(Sampler, KeepsTheIdsThatAreLikelyEnoughBesideTheBest) {
  const auto logits = logits_of({0.1, 0.4, 0.2, 0.3});
  auto drawn = frequencies(logits, {.temperature = 1, .min_p = 0.6f, .seed = 7});
  EXPECT_EQ(drawn.size(), 2u);
  EXPECT_NEAR(drawn[1], 4.0 / 7, kTolerance);
  EXPECT_NEAR(drawn[3], 3.0 / 7, kTolerance);
  // After the temperature: of 0.5, 0.75^2 is less than 0.6.
  EXPECT_EQ(frequencies(logits, {.temperature = 0.5f, .min_p = 0.6f}, 200).size(), 1u);
  EXPECT_EQ(frequencies(logits, {.temperature = 1e30f, .min_p = 0.99f}, 200).size(), 4u);
  EXPECT_EQ(frequencies(logits, {.temperature = 1, .min_p = 1e-30f}, 200).size(), 4u);
}

TEST(Sampler, KeepsTheBestIdAndItsEqualsWhateverMinPSays) {
  for (const float min_p : {1.0f, 2.0f}) {
    for (const float temperature : {1e-30f, 1.0f, 1e30f}) {
      const SampleRow row{.temperature = temperature, .min_p = min_p};
      EXPECT_EQ(frequencies({2, 5, 5, 1}, row, 200).size(), 2u);
    }
  }
}

TEST(Sampler, MeasuresTopPAfterMinP) {
  // Of 4/7 and 3/7 the first alone reaches 0.5; of all four it would not.
  const auto logits = logits_of({0.1, 0.4, 0.2, 0.3});
  const SampleRow row{.temperature = 1, .top_p = 0.5f, .min_p = 0.6f};
  EXPECT_EQ(frequencies(logits, row, 200).size(), 1u);
}

TEST(Sampler, DrawsInTheOrderOfTheIdsWhateverIsKept) {
  // 1, 3 and 2, best first, reach 0.85; their running sums over ascending ids are 0.4, 0.6, 0.9.
  const auto logits = logits_of({0.1, 0.4, 0.2, 0.3});
  for (SampleRow row : {SampleRow{.temperature = 1, .top_p = 0.85f, .seed = 6},
                        SampleRow{.temperature = 1, .top_k = 3, .seed = 6},
                        SampleRow{.temperature = 1, .top_k = 3, .top_p = 0.95f, .seed = 6}}) {
    for (row.position = 0; row.position < 100; ++row.position) {
      const double point = 0.9 * uniform01(random_bits(row.seed, row.sequence, row.position));
      EXPECT_EQ(sample(logits, row).id, point < 0.4 ? 1 : point < 0.6 ? 2 : 3);
    }
  }
}

TEST(Sampler, FindsALargeNucleusInALargeVocabulary) {
  // 3000 equal weights: p = 0.5 keeps the 1500 lowest ids, more than one step of the search sorts.
  const std::vector<float> logits(3000, 1.5f);
  std::int32_t largest = 0;
  for (const auto& [id, frequency] :
       frequencies(logits, {.temperature = 1, .top_p = 0.49995f, .seed = 5}, 4000)) {
    largest = std::max(largest, id);
  }
  EXPECT_LT(largest, 1500);
  EXPECT_GT(largest, 1450);
}

TEST(Sampler, PenalisesEachRepeatedIdOnce) {
  const std::vector<float> logits = {2.0f, 1.5f, -1.0f, -1.4f};
  const std::vector<std::int32_t> first = {0, 0, 0};
  EXPECT_EQ(sample(logits, {.repetition_penalty = 1.2f, .history = first}).id, 0)
      << "2 / 1.2 is still the largest, 2 / 1.2^3 is not";
  EXPECT_EQ(sample(logits, {.repetition_penalty = 1.5f, .history = first}).id, 1);
  // Negative logits are multiplied: -1 * 1.5 falls behind -1.4.
  const std::vector<std::int32_t> all_but_last = {0, 1, 2};
  const SampleRow row{.repetition_penalty = 1.5f, .history = all_but_last};
  EXPECT_EQ(sample({-1.0f, -1.2f, -1.1f, -1.4f}, row).id, 3);
}

TEST(Sampler, TakesTheBestWhereThePenaltyLeavesFloat32) {
  // 2e9 / 1e-30 is beyond float32. Weights relative to infinity would be no numbers, and id 0,
  // which is <unk> in many vocabularies, was drawn.
  const std::vector<std::int32_t> history = {1, 2};
  const std::vector<float> logits = {1, 2e9f, -2e9f, 3};
  for (const float temperature : {0.0f, 1e-30f, 1.0f, 1e30f}) {
    for (const float top_p : {1.0f, 0.5f}) {
      SampleRow row{.temperature = temperature, .top_p = top_p, .history = history};
      row.repetition_penalty = 1e-30f;
      EXPECT_EQ(sample(logits, row).id, 1);
      row.repetition_penalty = 1e30f;  // -2e9 * 1e30 is -infinity, which has no weight
      EXPECT_NE(sample(logits, row).id, 2);
    }
  }
}

TEST(Sampler, IgnoresIdsOfTheHistoryBeyondTheVocabulary) {
  const std::vector<std::int32_t> history = {-1, 2, 2147483647, 1};
  EXPECT_EQ(sample({1.0f, 1.1f}, {.repetition_penalty = 2, .history = history}).id, 0);
}

TEST(Sampler, DrawsAsTheNaiveReferenceDoesWhateverComesTogether) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal(0, 3);
  const auto any = [&](auto... values) {
    const std::common_type_t<decltype(values)...> list[] = {values...};
    return list[random() % std::size(list)];
  };
  const auto any_id = [&] { return static_cast<std::int32_t>(random() % 60) - 2; };
  for (std::size_t i = 0; i < 3000; ++i) {
    std::vector<float> logits(any(1u, 2u, 37u, 700u));
    for (float& x : logits) x = normal(random);
    std::vector<std::int32_t> history(random() % 40);
    for (std::int32_t& id : history) id = any_id();
    std::vector<LogitBias> bias(any(0u, 0u, 1u, 30u));
    for (LogitBias& b : bias) {
      b.id = any_id();
      b.value = random() % 3 == 0 ? -kInfinity : normal(random);
    }
    std::erase_if(bias, [](const LogitBias& b) { return b.id == 0; });  // something is left
    SampleRow row{.temperature = any(0.0f, 0.7f, 1.0f, 20.0f),
                  .top_k = any(0, 3, 100),
                  .top_p = any(1.0f, 0.9f, 0.3f),
                  .min_p = any(0.0f, 0.0f, 0.05f, 0.5f),
                  .repetition_penalty = any(1.0f, 1.3f, 0.7f),
                  .presence_penalty = any(0.0f, 0.5f, -1.5f),
                  .frequency_penalty = any(0.0f, 0.3f, -0.2f),
                  .sequence = i,
                  .history = history,
                  .new_tokens = random() % (history.size() + 1),
                  .bias = bias};
    if (random() % 10 == 0) row.target = static_cast<std::int32_t>(random() % logits.size());
    std::vector<std::int32_t> ids(random() % 4), want_ids(ids.size());
    std::vector<float> logprobs(ids.size()), want_logprobs(ids.size());
    const Sampled got = sample_row(logits, row, ids, logprobs);
    const Sampled want = test::naive_sample_row(logits, row, want_ids, want_logprobs);
    ASSERT_EQ(got.id, want.id) << i;
    ASSERT_NEAR(got.logprob, want.logprob, 1e-5) << i;
    ASSERT_EQ(ids, want_ids) << i;
  }
}

TEST(Sampler, DrawsTheSameForTheSameSeedSequenceAndPosition) {
  std::vector<float> logits(1000);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = std::sin(static_cast<float>(i));
  const SampleRow row{.temperature = 1, .seed = 1, .sequence = 2, .position = 3};
  const auto id = sample(logits, row).id;
  EXPECT_EQ(sample(logits, row).id, id);
  const auto differs = [&](std::uint64_t SampleRow::*member) {
    int different = 0;
    for (std::uint64_t i = 0; i < 20; ++i) {
      SampleRow other = row;
      other.*member = 100 + i;
      different += sample(logits, other).id != id;
    }
    return different > 15;
  };
  EXPECT_TRUE(differs(&SampleRow::seed));
  EXPECT_TRUE(differs(&SampleRow::sequence));
  EXPECT_TRUE(differs(&SampleRow::position));
}

TEST(Sampler, NeverDrawsAnImpossibleId) {
  const std::vector<float> logits = {-kInfinity, 0, -kInfinity, 0, -kInfinity};
  for (const auto& [id, frequency] : frequencies(logits, {.temperature = 1}, 2000)) {
    EXPECT_TRUE(id == 1 || id == 3) << id;
  }
}

TEST(Sampler, StaysGreedyAtATinyTemperatureAndEvenAtAHugeOne) {
  EXPECT_EQ(sample({1, 2, 1.5f}, {.temperature = 1e-30f}).id, 1);
  EXPECT_EQ(frequencies({1, 2, 300}, {.temperature = 1e30f}, 500).size(), 3u);
}

TEST(Sampler, GivesNoIdForRowsThatAreNotNumbers) {
  for (const SampleRow& row : {SampleRow{}, SampleRow{.temperature = 1}, SampleRow{.target = 0}}) {
    for (const std::vector<float>& logits :
         {std::vector<float>{1, kNaN, 2}, {kNaN, 1}, {1, kInfinity}, {-kInfinity, -kInfinity}}) {
      std::vector<std::int32_t> top_ids(2, 7);
      std::vector<float> top_logprobs(2, 7);
      const Sampled sampled = sample_row(logits, row, top_ids, top_logprobs);
      EXPECT_EQ(sampled.id, kNoId);
      EXPECT_TRUE(std::isnan(sampled.logprob));
      EXPECT_EQ(top_ids, (std::vector<std::int32_t>{-1, -1}));
      EXPECT_EQ(top_logprobs, (std::vector<float>{-kInfinity, -kInfinity}));
    }
    EXPECT_THROW(sample({}, row), Error);
  }
}

}  // namespace
}  // namespace zi
