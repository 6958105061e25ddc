// Runs in which each host holds all weights, against runs in which the job's ranks hold them
// together. CMakeLists.txt pretends the hosts (ZERO_INFER_PRETEND_HOSTS); one of them may have more
// ranks than the others.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "engine_harness.h"
#include "model_runs.h"
#include "zero_infer/error.h"

namespace zi::test {
namespace {

using nlohmann::json;

class PartitionTest : public ModelRuns {
 protected:
  void SetUp() override {
    ModelRuns::SetUp();
    ASSERT_EQ(world().hosts().count(), 2) << "hosts are pretended for this test";
  }

  static RunConfig within_host(RunConfig config) {
    config.partition_within = PartitionWithin::kHost;
    return config;
  }

  /// Collective. The sum over the ranks of this rank's host.
  static std::uint64_t of_host(std::uint64_t mine) {
    const std::vector<std::uint64_t> all = world().all_gather(mine);
    std::uint64_t sum = 0;
    for (const int rank : world().hosts().beside(world().rank())) {
      sum += all[static_cast<std::size_t>(rank)];
    }
    return sum;
  }

  /// On rank 0: the same texts, and logits that differ by the rounding of products cut otherwise.
  static void expect_same_answers(const Played& a, const Played& b, const std::string& what) {
    if (world().rank() != 0) return;
    ASSERT_EQ(a.results.size(), b.results.size()) << what;
    std::map<std::uint64_t, const Result*> of;
    for (const Result& r : a.results) of[r.index] = &r;
    for (const Result& r : b.results) {
      ASSERT_TRUE(of.contains(r.index)) << what;
      EXPECT_EQ(r.token_ids, of[r.index]->token_ids) << what << ": prompt " << r.index;
      EXPECT_EQ(r.finish_reason, of[r.index]->finish_reason) << what;
    }
    ASSERT_EQ(a.logits.size(), b.logits.size()) << what;
    for (const auto& [key, row] : a.logits) {
      const auto& other = b.logits.at(key);
      for (std::size_t i = 0; i < row.size(); ++i) ASSERT_NEAR(row[i], other[i], 1e-3) << what;
    }
  }
};

TEST_P(PartitionTest, EachHostAloneGivesTheAnswersOfTheWholeJob) {
  const auto all = prompts(7);
  const Played base = play(config(Travel::kWeights), all);
  const RankHosts& hosts = world().hosts();
  const auto ranks = static_cast<std::size_t>(world().size());
  const std::size_t here = hosts.beside(world().rank()).size();

  // A block comes into a host once: not once for each of its ranks.
  const std::size_t gathered = base.outcome.fetched.bytes[Link::kGather];
  const auto once = static_cast<double>(gathered / (ranks - 1) * (ranks - here));
  const auto over_network =
      static_cast<double>(of_host(base.outcome.fetched.bytes[Link::kNetwork]));
  EXPECT_GE(over_network, once);
  EXPECT_LE(over_network, 1.3 * once) << "what head and embedding exchange besides";

  // In the last, ranks of both hosts write the same shard files.
  const Placement on_nvme = placements(shard_bytes()).back();
  for (const auto& [travel, place] : {std::pair{Travel::kWeights, kDeviceOnly},
                                      {Travel::kActivations, kDeviceOnly},
                                      {Travel::kAuto, kDeviceOnly},
                                      {Travel::kWeights, on_nvme}}) {
    const Played alone = play(within_host(placed(config(travel), place, folder_.path())), all);
    expect_same_answers(base, alone, place.name + ", " + std::string(name_of(travel)));
    EXPECT_EQ(alone.outcome.fetched.bytes[Link::kNetwork], 0u);
    if (travel == Travel::kAuto) continue;
    EXPECT_EQ(alone.outcome.fetched.bytes[Link::kGather] > 0,
              here > 1 && travel == Travel::kWeights);
  }
}

TEST_P(PartitionTest, AHostThatSplitsItsProductsAndOneThatGathersAreOneJob) {
  const auto all = prompts(5);
  const Played base = play(config(Travel::kWeights), all);
  RunConfig shared = within_host(config(Travel::kWeights));
  shared.cpu_offload = true;
  for (const std::optional<double> share : {std::optional(0.3), std::optional<double>()}) {
    shared.cpu_share = share;
    expect_same_answers(base, play(shared, all), share ? "share 0.3" : "share auto");
  }
}

TEST_P(PartitionTest, ScoresTheSame) {
  const auto all = prompts(6);
  RunConfig score = config(Travel::kWeights);
  score.score = true;
  const Played job_scores = play(score, all), host_scores = play(within_host(score), all);
  if (world().rank() == 0) {
    EXPECT_EQ(job_scores.results.size(), all.size());
  }
  for (const Result& r : job_scores.results) {
    const auto other =
        std::ranges::find(host_scores.results, r.index, [](const Result& o) { return o.index; });
    ASSERT_NE(other, host_scores.results.end());
    ASSERT_EQ(r.token_logprobs->size(), other->token_logprobs->size());
    for (std::size_t i = 0; i < r.token_logprobs->size(); ++i) {
      EXPECT_NEAR((*r.token_logprobs)[i], (*other->token_logprobs)[i], 1e-3);
    }
  }
}

TEST_P(PartitionTest, DealsPromptsOverAllHostsAndRunsNoPassWhereAHostHasNone) {
  const Played many = play(within_host(config(Travel::kWeights)), prompts(12));
  std::set<int> ranks;
  for (const Result& r : many.results) ranks.insert(r.rank);
  if (world().rank() == 0) {
    EXPECT_EQ(std::ssize(ranks), world().size()) << "ranks are the job's";
  }
  const Played one = play(within_host(config(Travel::kWeights)), prompts(1));
  const std::uint64_t passes = of_host(one.outcome.fetched.passes);
  const std::vector<std::uint64_t> all = world().all_gather(passes);
  std::set<int> busy;
  for (int r = 0; r < world().size(); ++r) {
    if (all[static_cast<std::size_t>(r)] > 0) busy.insert(world().hosts().host_of(r));
  }
  EXPECT_EQ(busy.size(), 1u) << "other hosts have nothing to do";
  EXPECT_GT(one.outcome.stats.passes, 0) << "but knows of the job's passes";
}

TEST_P(PartitionTest, HostsOfUnequalMemoryRefuseTheSamePrompts) {
  // Without a budget the cache gets a share of what the shards leave, which differs.
  const RunConfig run = within_host(config(Travel::kWeights));
  const MemoryPlan plan = Engine(world(), make_backend(world(), run), run).plan();
  for (const std::int64_t pages : world().all_gather(plan.kv_pages)) {
    EXPECT_EQ(pages, plan.kv_pages);
  }
  EXPECT_EQ(plan.blocks.front().world(),
            static_cast<int>(world().hosts().beside(world().rank()).size()));
}

TEST_P(PartitionTest, RanksThatWantDifferentPartitionsAreRefused) {
  RunConfig run = config(Travel::kWeights);
  if (world().rank() == world().size() - 1) run = within_host(run);
  try {
    make_backend(world(), run);
    ADD_FAILURE() << "not refused";
  } catch (const PeerError&) {
    EXPECT_NE(world().rank(), world().size() - 1);
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("--partition-within must be the same"));
    EXPECT_EQ(world().rank(), world().size() - 1);
  }
}

INSTANTIATE_TEST_SUITE_P(Bundled, PartitionTest, testing::Values(kModelCases[0]),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace zi::test
