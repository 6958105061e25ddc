// Runs that say nothing of what travels, against runs in which weights do, for the ranks that
// mpirun started: on the CPU backend the same bits, whatever was measured at the start.

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "engine_harness.h"
#include "model_runs.h"

namespace zi::test {
namespace {

class TravelByDefault : public ModelRuns {
 protected:
  RunConfig by_default() const { return config(RunConfig().travel); }
};

TEST_P(TravelByDefault, IsEitherWayWithTheSameBitsOnEveryTier) {
  const auto all = prompts(10);
  const Played base = play(config(Travel::kWeights), all);
  auto places = GetParam().every_tier ? placements(shard_bytes()) : std::vector{kDeviceOnly};
  places.push_back({"host, by a budget alone", false, false, 0, std::size_t{1} << 30});
  for (const Placement& place : places) {
    const Played run = play(placed(by_default(), place, folder_.path()), all);
    EXPECT_EQ(run.plan.travel, world().size() > 1 ? Travel::kAuto : Travel::kWeights);
    expect_same(base, run, place.name);
  }
}

TEST_P(TravelByDefault, GoesOnWhereAllRanksButOneAreIdle) {
  const auto all = prompts(10);
  const std::vector<nlohmann::json> one = {all.back()};
  expect_same(play(config(Travel::kWeights), one), play(by_default(), one), "one prompt");
}

TEST_P(TravelByDefault, DecidesAlikeOnAllRanksAndOnceForAllJobs) {
  const RunConfig config = by_default();
  Engine engine(world(), make_backend(world(), config), config);
  std::vector<std::uint64_t> first;
  for (int job = 0; job < 2; ++job) {
    const auto source = world().rank() == 0 ? prompts_from_flags({"In the beginning"}) : nullptr;
    MemorySink sink;
    const Engine::Outcome done = engine.generate({.source = source.get(),
                                                  .sink = &sink,
                                                  .lanes = config.batch_size.front(),
                                                  .options = engine.generation_options()});
    const auto all = world().all_gather(done.fetched.staying);
    EXPECT_EQ(std::ranges::count(all, all.front()), world().size());
    if (job == 0) first = all;
    EXPECT_EQ(all, first) << "the second job has the same passes";
    engine.end_passes();
    engine.begin_passes();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, TravelByDefault,
    testing::ValuesIn(kSanitized ? model_cases({"llama_gated", "llama_odd", "mistral"})
                                 : model_cases({"bloom_float32", "bloom_int8", "mistral"})),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace zi::test
