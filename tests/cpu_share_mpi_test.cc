// Runs in which the host's cores multiply a share of the weights that rest in its memory, against
// runs in which the device multiplies all of them: the same bits on the CPU.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine_harness.h"
#include "model_runs.h"

namespace zi::test {
namespace {

using nlohmann::json;
using testing::HasSubstr;

class CpuShareTest : public ModelRuns {
 protected:
  /// Weights in host memory; where there are several ranks, those of each stay.
  RunConfig shared(std::optional<double> share) const {
    RunConfig run = config(world().size() > 1 ? Travel::kActivations : Travel::kWeights);
    run.cpu_offload = true;
    run.gpu_weight_budget = 0;
    run.cpu_share = share;
    return run;
  }
};

TEST_P(CpuShareTest, GivesTheBitsOfNoShare) {
  const auto all = prompts(10);
  const Played base = play(config(Travel::kWeights), all);
  EXPECT_EQ(base.outcome.fetched.host_bytes, 0u);
  for (const auto& [share, lanes] : {std::pair{0.7, 16}, std::pair{1.0, 1}}) {
    RunConfig run = shared(share);
    run.batch_size = {lanes};
    const Played other = play(run, all);
    expect_same(base, other, fmt::format("a share of {}, {} lanes", share, lanes));
    EXPECT_GT(other.outcome.fetched.host_bytes, 0u);
    EXPECT_EQ(other.outcome.fetched.bytes[Link::kCopy] == 0, share == 1);
  }
  RunConfig chunks = shared(0.6);
  chunks.max_pass_tokens = 5;  // chunks of prompts beside decoding lanes
  expect_same(base, play(chunks, all), "chunks of 5 rows");
  expect_same(base, play(shared(std::nullopt), all), "as measured");

  // What was fetched for a pass of few rows is completed for one of many, and the other way round.
  RunConfig by_rows = shared(std::nullopt);
  by_rows.max_pass_tokens = 16;
  expect_same(base,
              play(by_rows, all,
                   {.host_shares = HostShares(
                        std::vector<HostShares::Point>{{1, 0.9}, {3, 0.5}, {6, 0.3}, {9, 0}})}),
              "shares by rows");
}

INSTANTIATE_TEST_SUITE_P(Models, CpuShareTest, testing::ValuesIn(model_cases_of_this_build()),
                         [](const auto& info) { return info.param.name; });

/// Some of the models; under a sanitizer one with stored and one with packed weights.
class CpuShareOfSomeModels : public CpuShareTest {};

TEST_P(CpuShareOfSomeModels, GivesTheBitsOfNoShareInEveryTier) {
  const auto all = prompts(8);
  const Played base = play(config(Travel::kWeights), all);
  for (const Placement& place : placements(shard_bytes())) {
    const Played other = play(placed(shared(0.5), place, folder_.path()), all);
    expect_same(base, other, place.name);
    EXPECT_EQ(other.outcome.fetched.host_bytes > 0, other.plan.host_shards > 0) << place.name;
  }
}

TEST_P(CpuShareOfSomeModels, IsNoneInPassesThatGather) {
  if (world().size() == 1) GTEST_SKIP() << "one rank gathers nothing";
  const auto all = prompts(8);
  const Played base = play(config(Travel::kWeights), all);
  RunConfig gathers = shared(0.5);
  gathers.travel = Travel::kWeights;
  const Played none = play(gathers, all);
  expect_same(base, none, "all passes gather");
  EXPECT_EQ(none.outcome.fetched.host_bytes, 0u);
  EXPECT_THAT(none.plan.notes, testing::Contains(HasSubstr("--cpu-share has no effect")));

  RunConfig either = shared(0.5);
  either.travel = Travel::kAuto;
  either.max_pass_tokens = 16;
  const Played mixed = play(either, all, {.stay_rows = 4});
  expect_same(base, mixed, "up to 4 rows stay");
  EXPECT_GT(mixed.outcome.fetched.host_bytes, 0u);
  EXPECT_GT(mixed.outcome.fetched.bytes[Link::kGather], 0u);
}

INSTANTIATE_TEST_SUITE_P(Some, CpuShareOfSomeModels,
                         testing::ValuesIn(kSanitized ? model_cases({"bloom_int4", "llama_gated"})
                                                      : model_cases({"bloom_float32", "bloom_int4",
                                                                     "llama_gated"})),
                         [](const auto& info) { return info.param.name; });

/// The bundled model alone.
class CpuShareOfTheBundledModel : public CpuShareTest {};

TEST_P(CpuShareOfTheBundledModel, ScoresTheSame) {
  const auto all = prompts(9);
  const auto scores = [&](RunConfig score) {
    score.score = true;
    score.max_pass_tokens = 16;
    std::map<std::uint64_t, std::vector<float>> logprobs;
    for (const Result& r : play(score, all).results) logprobs[r.index] = r.token_logprobs.value();
    return logprobs;
  };
  const auto alone = scores(config(Travel::kWeights));
  const auto split = scores(shared(0.5));
  ASSERT_EQ(alone.size(), split.size());
  for (const auto& [prompt, logprobs] : alone) {
    ASSERT_EQ(logprobs.size(), split.at(prompt).size());
    for (std::size_t i = 0; i < logprobs.size(); ++i) {
      if (exact_bits()) {
        EXPECT_EQ(logprobs[i], split.at(prompt)[i]);
      } else {
        EXPECT_NEAR(logprobs[i], split.at(prompt)[i], 0.4);
      }
    }
  }
}

TEST_P(CpuShareOfTheBundledModel, TakesItsMemoryOnlyWhereTheHostCanHaveAShare) {
  const auto plan_of = [&](const RunConfig& run) {
    return Engine(world(), make_backend(world(), run), run).plan();
  };
  const MemoryPlan splits = plan_of(shared(0.5));
  EXPECT_TRUE(splits.splits());
  EXPECT_GT(splits.split_products, 0u);
  EXPECT_GT(splits.host_products, splits.split_products) << "inputs besides";
  EXPECT_FALSE(plan_of(shared(0)).splits());
  EXPECT_EQ(plan_of(shared(0)).host_products, 0u);
  RunConfig resident = config(Travel::kWeights);
  resident.cpu_share = 0.5;
  EXPECT_FALSE(plan_of(resident).splits());
  EXPECT_EQ(plan_of(resident).split_products, 0u);
  EXPECT_THAT(plan_of(resident).notes, testing::Contains(HasSubstr("--cpu-share has no effect")));
}

INSTANTIATE_TEST_SUITE_P(Bundled, CpuShareOfTheBundledModel,
                         testing::Values(kModelCases[0], kModelCases[1]),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace zi::test
