// Runs in which activations travel and weights stay, against runs in which weights travel, for the
// ranks that mpirun started: the same bits on the CPU.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "engine_harness.h"
#include "model_runs.h"

namespace zi::test {
namespace {

using nlohmann::json;

class TravelTest : public ModelRuns {
 protected:
  /// On every rank: that weights, or activations, were what travelled.
  static void expect_travelled(const Engine::Outcome& run, Travel travel) {
    const bool many = world().size() > 1;
    const bool stays = many && travel == Travel::kActivations;
    EXPECT_EQ(run.fetched.staying, stays ? run.fetched.passes : 0u);
    EXPECT_EQ(run.fetched.bytes[Link::kGather] > 0, many && !stays);
    EXPECT_EQ(run.exchanged.trips > 0, many) << "the head's at least";
  }
};

TEST_P(TravelTest, WeightsThatStayGiveTheBitsOfWeightsThatTravel) {
  const auto all = prompts(10);
  const Played base = play(config(Travel::kWeights), all);
  expect_travelled(base.outcome, Travel::kWeights);
  if (world().rank() == 0) {
    EXPECT_EQ(base.results.size(), all.size());
  }

  const auto places = placements(shard_bytes());
  for (std::size_t p = 0; p < (GetParam().every_tier ? places.size() : 1); ++p) {
    RunConfig stays = placed(config(Travel::kActivations), places[p], folder_.path());
    stays.batch_size = {std::array{16, 3, 1}[p % 3]};
    const Played other = play(stays, all);
    expect_travelled(other.outcome, Travel::kActivations);
    expect_same(base, other, fmt::format("{}, {} lanes", places[p].name, stays.batch_size[0]));
  }

  RunConfig chunks = config(Travel::kActivations);
  chunks.max_pass_tokens = 5;  // chunks of prompts beside decoding lanes
  expect_same(base, play(chunks, all), "chunks of 5 rows");
  RunConfig many = config(Travel::kActivations);
  many.batch_size = {2};
  expect_same(base, play(many, all), "2 lanes");

  // Each pass by its rows, one way or the other; and by what was measured.
  for (const std::size_t p : {std::size_t{0}, places.size() - 1}) {
    if (p > 0 && !GetParam().every_tier) continue;
    RunConfig either = placed(config(Travel::kAuto), places[p], folder_.path());
    either.max_pass_tokens = 16;
    const Played by_rows = play(either, all, {.stay_rows = 4});
    expect_same(base, by_rows, places[p].name + ", up to 4 rows stay");
    if (world().size() == 1) continue;
    EXPECT_GT(by_rows.outcome.fetched.staying, 0u);
    EXPECT_LT(by_rows.outcome.fetched.staying, by_rows.outcome.fetched.passes);
    EXPECT_GT(by_rows.outcome.fetched.bytes[Link::kGather], 0u);
  }
  expect_same(base, play(config(Travel::kAuto), all), "as measured");

  // One prompt: the other ranks have no row in any pass.
  const std::vector<json> one = {all.back()};
  expect_same(play(config(Travel::kWeights), one), play(config(Travel::kActivations), one),
              "idle ranks");
}

INSTANTIATE_TEST_SUITE_P(Models, TravelTest, testing::ValuesIn(model_cases_of_this_build()),
                         [](const auto& info) { return info.param.name; });

/// The bundled model alone.
class TravelOfTheBundledModel : public TravelTest {};

TEST_P(TravelOfTheBundledModel, KeepsTheBitsWhenPagesRunOut) {
  std::vector<json> all = prompts(12);
  for (json& prompt : all) prompt["max_new_tokens"] = 30;
  // 6 layers, 5 heads of 64, K and V: seven pages of 16 tokens for 16 lanes.
  const std::size_t page = 6 * 2 * 320 * kKvPageTokens * size_of(GetParam().dtype);
  RunConfig stays = config(Travel::kActivations);
  stays.batch_size = {16};
  stays.max_pass_tokens = 64;
  stays.kv_budget = 7 * page;
  const Played tight = play(stays, all);
  expect_same(play(config(Travel::kWeights), all), tight, "seven pages");
  if (world().size() == 1) {
    EXPECT_GT(tight.outcome.stats.preemptions, 0);
  }
}

TEST_P(TravelOfTheBundledModel, ScoresTheSame) {
  const auto all = prompts(11);
  const auto scores = [&](Travel travel) {
    RunConfig score = config(travel);
    score.score = true;
    score.max_pass_tokens = 16;
    const Played run = play(score, all);
    std::map<std::uint64_t, std::vector<float>> logprobs;
    for (const Result& r : run.results) logprobs[r.index] = r.token_logprobs.value();
    return logprobs;
  };
  const auto travelling = scores(Travel::kWeights);
  const auto staying = scores(Travel::kActivations);
  ASSERT_EQ(travelling.size(), staying.size());
  for (const auto& [prompt, logprobs] : travelling) {
    ASSERT_EQ(logprobs.size(), staying.at(prompt).size());
    for (std::size_t i = 0; i < logprobs.size(); ++i) {
      if (exact_bits()) {
        EXPECT_EQ(logprobs[i], staying.at(prompt)[i]);
      } else {
        EXPECT_NEAR(logprobs[i], staying.at(prompt)[i], 0.4);
      }
    }
  }
}

TEST_P(TravelOfTheBundledModel, TakesNoSlotsForBlocksThatRestOnTheDevice) {
  const auto plan_of = [&](Travel travel, bool offload) {
    RunConfig run = config(travel);
    run.cpu_offload = offload;
    if (offload) run.gpu_weight_budget = 0;
    return Engine(world(), make_backend(world(), run), run).plan();
  };
  const MemoryPlan stays = plan_of(Travel::kActivations, false);
  EXPECT_EQ(stays.slots, 0u);
  const MemoryPlan travels = plan_of(Travel::kWeights, false);
  const MemoryPlan host = plan_of(Travel::kActivations, true);
  if (world().size() == 1) {
    EXPECT_EQ(travels.slots, 0u);
    EXPECT_EQ(stays.product_exchange.bytes(), 0u);
    return;
  }
  EXPECT_GT(travels.slots, 0u);
  EXPECT_GT(stays.product_exchange.bytes(), travels.product_exchange.bytes());
  EXPECT_EQ(host.slots, 2 * host.blocks.front().shard_bytes()) << "own shards alone";
}

TEST_P(TravelOfTheBundledModel, ReplicatedBlocksGiveTheBitsOfGatheredOnesAndAreNotGathered) {
  const auto all = prompts(10);
  const Played base = play(config(Travel::kWeights), all);
  const auto blocks = static_cast<std::int64_t>(base.plan.blocks.size());
  const auto gathered_a_pass = [](const Played& run) {
    return run.outcome.fetched.bytes[Link::kGather] / run.outcome.fetched.passes;
  };
  for (const std::int64_t replicated : {std::int64_t{1}, blocks}) {
    const std::string name = fmt::format("{} of {} blocks", replicated, blocks);
    RunConfig run = config(Travel::kWeights);
    run.replicated_blocks = replicated;
    const Played some = play(run, all);
    expect_same(base, some, name);
    std::size_t bytes = 0;
    for (std::size_t b = 0; b < some.plan.blocks.size(); ++b) {
      if (!some.plan.replicated[b]) bytes += some.plan.blocks[b].shard_bytes();
    }
    EXPECT_EQ(gathered_a_pass(some), bytes * static_cast<std::size_t>(world().size() - 1)) << name;
    EXPECT_EQ(some.plan.slots == 0, world().size() == 1 || replicated == blocks) << name;

    RunConfig either = config(Travel::kAuto);
    either.replicated_blocks = replicated;
    either.max_pass_tokens = 16;
    expect_same(base, play(either, all, {.stay_rows = 4}), name + ", up to 4 rows stay");
    expect_same(base, play(either, all), name + ", as measured");
  }
  // Beside blocks that are offloaded, and with an offload that none needs.
  const std::size_t shard = base.plan.blocks.front().shard_bytes();
  for (const auto& [on_device, replicated] :
       {std::pair{blocks / 2, std::int64_t{1}}, std::pair{blocks, std::int64_t{2}},
        std::pair{blocks, blocks}}) {
    RunConfig offload = config(Travel::kAuto);
    offload.cpu_offload = true;
    offload.gpu_weight_budget =
        shard * static_cast<std::size_t>(on_device + replicated * (world().size() - 1));
    offload.replicated_blocks = replicated;
    const std::string name =
        fmt::format("{} of {} on the device replicated", replicated, on_device);
    expect_same(base, play(offload, all, {.stay_rows = 4}), name);
    expect_same(base, play(offload, all), name + ", as measured");
  }
  // One prompt: the other ranks have no row in any pass.
  RunConfig run = config(Travel::kWeights);
  const std::vector<json> one = {all.back()};
  const Played alone = play(run, one);
  run.replicated_blocks = blocks;
  expect_same(alone, play(run, one), "idle ranks");
}

INSTANTIATE_TEST_SUITE_P(Bundled, TravelOfTheBundledModel,
                         testing::Values(kModelCases[0], kModelCases[1]),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace zi::test
