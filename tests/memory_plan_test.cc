#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/memory_planner.h"
#include "engine/needless_offload.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::size_t kGiB = std::size_t{1} << 30;

ModelConfig shape(std::int64_t hidden, std::int64_t layers, std::int64_t heads) {
  ModelConfig c;
  c.family = "bloom";
  c.hidden = hidden;
  c.layers = layers;
  c.heads = heads;
  c.kv_heads = heads;
  c.head_dim = hidden / heads;
  c.ffn = 4 * hidden;
  c.vocabulary = 250880;
  return c;
}

class Plan : public testing::Test {
 protected:
  /// bloom-7b1 on a device of its own.
  PlanInput input(int world, bool device_is_host = false) {
    PlanInput in;
    in.model = model_.get();
    in.world = world;
    in.local_size = world;
    in.device_is_host = device_is_host;
    in.device_free = 80 * kGiB;
    in.host_free = 120 * kGiB;
    return in;
  }
  static std::string refusal(const PlanInput& in, const RunConfig& config) {
    try {
      make_plan(in, config);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  }
  /// Weights are gathered, unless a test says otherwise.
  static RunConfig config() {
    RunConfig c;
    c.model = "m";
    c.travel = Travel::kWeights;
    return c;
  }
  /// What is said about an offload without need; empty: nothing.
  static std::string needless(const PlanInput& in, const RunConfig& config) {
    return needless_offload(make_plan(in, config), in, config).value_or("");
  }
  std::unique_ptr<Model> model_ = make_model(shape(4096, 30, 32), false);
};

// 12 H^2 elements of 2 bytes in a block's matrices: 402,653,184; V * H * 2 = 2,055,208,960 in the
// head.
constexpr std::size_t kBlock = 402'653'184;
constexpr std::size_t kHead = 2'055'208'960;

TEST_F(Plan, OneRankHoldsAllBlocksOnTheDeviceWithoutSlots) {
  const MemoryPlan plan = make_plan(input(1), config());
  EXPECT_EQ(plan.device_shards, 30 * kBlock);
  EXPECT_EQ(plan.head_shard, kHead);
  EXPECT_EQ(plan.slots, 0u);
  EXPECT_EQ(plan.host_shards + plan.nvme_shards + plan.staging, 0u);
}

TEST_F(Plan, FourRanksHoldAQuarterEachAndTwoGatheredSlots) {
  const MemoryPlan plan = make_plan(input(4), config());
  EXPECT_EQ(plan.device_shards, 30 * kBlock / 4);
  EXPECT_EQ(plan.head_shard, kHead / 4);
  EXPECT_EQ(plan.slots, 2 * kBlock);
}

// 176b: H = 14336, 70 blocks of 12 H^2 elements with 2 bytes each (the published bloom config), and
// 2 * 70 * H * 2 = 4,014,080 bytes of KV a token.
constexpr std::size_t kLargeBlock = 4'932'501'504;

TEST_F(Plan, The176bShapeFitsEightGpusOf80GigabytesWithTheRestForKv) {
  const auto model = make_model(shape(14336, 70, 112), false);
  for (const std::int64_t batch : {1, 8, 16, 32, 64}) {
    PlanInput in = input(8);
    in.model = model.get();
    in.device_free = 79 * kGiB;  // of 80 GB after the context
    RunConfig c = config();
    c.batch_size = {batch};
    const MemoryPlan plan = make_plan(in, c);
    EXPECT_EQ(plan.device_shards, 70 * kLargeBlock / 8);
    EXPECT_EQ(plan.slots, 2 * kLargeBlock);
    EXPECT_EQ(plan.head_shard, std::size_t{250'880} / 8 * 14'336 * 2);
    EXPECT_EQ(plan.kv, static_cast<std::size_t>(plan.kv_pages) * kKvPageTokens * 4'014'080);
    EXPECT_LE(plan.device_bytes(), in.device_free * 95 / 100);
    if (batch == 1) {
      EXPECT_EQ(plan.max_sequence_tokens, 2048);
    }
    if (batch == 64) {
      // What is left of 75.05 GiB after 43.2 GB of shards, 9.9 of slots and some 3 of all else.
      EXPECT_GT(plan.kv_pages * kKvPageTokens, 5000);
      EXPECT_LT(plan.kv_pages * kKvPageTokens, 7000);
    }
  }
}

TEST_F(Plan, The176bShapeDoesNotFitFourGpusOf80GigabytesUnlessItIsOffloaded) {
  const auto model = make_model(shape(14336, 70, 112), false);
  PlanInput in = input(4);
  in.model = model.get();
  in.device_free = 79 * kGiB;
  in.host_free = 800 * kGiB;
  RunConfig c = config();
  EXPECT_THAT(refusal(in, c), HasSubstr("the plan does not fit"));
  c.cpu_offload = true;
  const MemoryPlan plan = make_plan(in, c);
  EXPECT_GT(plan.device_shards, 0u);
  EXPECT_EQ(plan.device_shards + plan.host_shards, 70 * kLargeBlock / 4);
  EXPECT_EQ(plan.slots, 3 * kLargeBlock);
  EXPECT_LE(plan.device_bytes(), in.device_free * 95 / 100);
}

TEST_F(Plan, KvPagesFollowTheBudgetAndTheFormula) {
  RunConfig c = config();
  c.kv_budget = kGiB;
  const MemoryPlan plan = make_plan(input(1), c);
  // A token of 7b1 has keys and values of 30 layers with 4096 elements of 2 bytes: 491,520 bytes.
  EXPECT_EQ(plan.kv_pages, static_cast<std::int64_t>(kGiB / (491'520 * kKvPageTokens)));
  EXPECT_EQ(plan.kv, static_cast<std::size_t>(plan.kv_pages) * 491'520 * kKvPageTokens);
  EXPECT_EQ(plan.max_sequence_tokens, plan.kv_pages * kKvPageTokens);
}

TEST_F(Plan, AnEmbeddingOfItsOwnRestsOnTheDeviceUnlessTheKvCacheOrBlocksWouldMissTheRoom) {
  EXPECT_EQ(make_plan(input(1), config()).embedding_shard, 0u);  // it is the head
  PlanInput in = input(1);
  in.device_free = (make_plan(in, config()).device_bytes() + kHead / 2) * 100 / 95;
  const std::int64_t kv_pages = make_plan(in, config()).kv_pages;

  model_ = make_model(shape(4096, 30, 32), true);
  const MemoryPlan roomy = make_plan(input(1), config());
  EXPECT_EQ(roomy.embedding_shard, kHead);
  EXPECT_EQ(roomy.embedding_on(Tier::kDevice), kHead);
  EXPECT_EQ(roomy.device_bytes(), roomy.device_shards + 2 * kHead + roomy.vectors + roomy.kv +
                                      roomy.workspace + roomy.head_workspace + roomy.inputs);
  EXPECT_EQ(make_plan(input(4), config()).embedding_on(Tier::kDevice), kHead / 4);

  in.model = model_.get();
  const MemoryPlan tight = make_plan(in, config());
  EXPECT_EQ(tight.embedding_on(Tier::kHost), kHead);
  EXPECT_EQ(tight.kv_pages, kv_pages);
  EXPECT_GE(tight.host_bytes(), kHead);
  in.host_free = kHead;  // nor is there room
  EXPECT_EQ(make_plan(in, config()).embedding_on(Tier::kDevice), kHead);
  EXPECT_LT(make_plan(in, config()).kv_pages, kv_pages);

  RunConfig offload = config();
  offload.cpu_offload = true;
  EXPECT_EQ(make_plan(input(1), offload).embedding_on(Tier::kHost), kHead);
  EXPECT_EQ(make_plan(input(1, true), offload).embedding_on(Tier::kDevice), kHead);
}

TEST_F(Plan, OnlyRanksThatExchangeEmbeddingRowsTakeMemoryForThem) {
  EXPECT_EQ(make_plan(input(1), config()).row_exchange, 0u);
  const MemoryPlan many = make_plan(input(4), config());
  EXPECT_GT(many.row_exchange, std::size_t{16} << 20);
  EXPECT_LE(many.row_exchange, std::size_t{32} << 20);
  EXPECT_LE(make_plan(input(4, true), config()).row_exchange, std::size_t{8} << 20);
}

TEST_F(Plan, ATinyKvBudgetIsRefusedWithThePagesSize) {
  RunConfig c = config();
  c.kv_budget = 1000;
  EXPECT_THAT(refusal(input(1), c), HasSubstr("16 tokens take 7.50 MiB"));
}

TEST_F(Plan, CpuOffloadWithoutDeviceBudgetPutsEveryBlockOnTheHost) {
  RunConfig c = config();
  c.cpu_offload = true;
  c.gpu_weight_budget = 0;
  const MemoryPlan plan = make_plan(input(1), c);
  EXPECT_EQ(plan.device_shards, 0u);
  EXPECT_EQ(plan.host_shards, 30 * kBlock);
  EXPECT_EQ(plan.slots, 2 * kBlock);
}

TEST_F(Plan, CpuOffloadFillsTheDeviceFirstAndSpreadsTheRest) {
  PlanInput in = input(1);
  in.device_free = 12 * kGiB;
  RunConfig c = config();
  c.cpu_offload = true;
  const MemoryPlan plan = make_plan(in, c);
  EXPECT_GT(plan.device_shards, 0u);
  EXPECT_GT(plan.host_shards, 0u);
  EXPECT_EQ(plan.device_shards + plan.host_shards, 30 * kBlock);
  EXPECT_LE(plan.device_bytes(), 12 * kGiB);
}

TEST_F(Plan, OnTheCpuBackendOffloadMovesEveryBlockBecauseTheDeviceIsTheHost) {
  RunConfig c = config();
  c.cpu_offload = true;
  const MemoryPlan plan = make_plan(input(2, true), c);
  EXPECT_EQ(plan.device_shards, 0u);
  EXPECT_EQ(plan.host_shards, 30 * kBlock / 2);
}

TEST_F(Plan, ThreeTiersShareTheBlocksByTheirBudgets) {
  RunConfig c = config();
  c.cpu_offload = true;
  c.nvme_offload_path = "/mnt/nvme";
  c.gpu_weight_budget = 10 * kBlock;
  c.cpu_weight_budget = 5 * kBlock + 1;
  const MemoryPlan plan = make_plan(input(1), c);
  EXPECT_EQ(plan.device_shards, 10 * kBlock);
  EXPECT_EQ(plan.host_shards, 5 * kBlock);
  EXPECT_EQ(plan.nvme_shards, 15 * kBlock);
  EXPECT_EQ(plan.staging, std::size_t{80} << 20);
}

TEST_F(Plan, AModelThatDoesNotFitIsRefusedWithTheNumbersAndWhatToChange) {
  PlanInput in = input(1);
  in.device_free = 8 * kGiB;
  const std::string message = refusal(in, config());
  EXPECT_THAT(message, HasSubstr("of device memory, 7.60 GiB are available"));
  EXPECT_THAT(message, HasSubstr("--cpu-offload or --nvme-offload-path"));
  EXPECT_THAT(message, HasSubstr("block shards, device"));
  EXPECT_THAT(message, HasSubstr("11.2 GiB"));
}

TEST_F(Plan, HostMemoryIsSharedByTheRanksOfAHost) {
  PlanInput in = input(4);
  in.host_free = 10 * kGiB;
  RunConfig c = config();
  c.cpu_offload = true;
  c.gpu_weight_budget = 0;
  EXPECT_THAT(refusal(in, c), HasSubstr("of host memory, 2.25 GiB are available"));
}

TEST_F(Plan, AHostBudgetBeyondWhatTheHostReportsIsPlannedWithADoubt) {
  PlanInput in = input(1);
  in.host_free = 10 * kGiB;
  RunConfig c = config();
  c.cpu_offload = true;
  c.gpu_weight_budget = 0;
  EXPECT_THAT(refusal(in, c), HasSubstr("of host memory, 9.00 GiB are available"));
  c.cpu_weight_budget = 12 * kGiB;
  EXPECT_THAT(make_plan(in, c).notes, ElementsAre(HasSubstr("as --cpu-weight-budget says")));
  in.host_free = 20 * kGiB;
  EXPECT_THAT(make_plan(in, c).notes, IsEmpty());
}

TEST_F(Plan, TheHostsShareOfAPlanIsPinnedMemoryOnAGpuAndAllOfItOnTheCpu) {
  const MemoryPlan gpu = make_plan(input(1), config());
  EXPECT_EQ(gpu.host_bytes(), std::size_t{64} << 20);  // two pieces of 32 MiB while loading
  EXPECT_EQ(gpu.process_bytes(), gpu.host_bytes());
  const MemoryPlan cpu = make_plan(input(1, true), config());
  EXPECT_EQ(cpu.process_bytes(), cpu.rank_bytes());
  EXPECT_EQ(cpu.rank_bytes(), cpu.device_bytes() + cpu.inputs + cpu.results);
  RunConfig dummy = config();
  dummy.load_format = LoadFormat::kDummy;  // made where they rest
  EXPECT_LT(make_plan(input(1), dummy).host_bytes(), std::size_t{32} << 20);
  PlanInput other = input(1);
  other.block_format = kInt4Weights;
  EXPECT_LT(make_plan(other, dummy).host_bytes(), std::size_t{32} << 20);
  // A device does not make the rows of other programs: they are packed on the host.
  other.block_format = WeightFormat(WeightFormat::Kind::kFloat8, ScaleType::kFloat32, 128);
  EXPECT_EQ(make_plan(other, dummy).host_bytes(), std::size_t{64} << 20);
}

TEST_F(Plan, BudgetsThatHoldTooLittleAreRefused) {
  RunConfig c = config();
  c.gpu_weight_budget = kGiB;
  EXPECT_THAT(refusal(input(1), c), HasSubstr("--nvme-offload-path"));
}

TEST_F(Plan, AnOffloadThatMovesNothingIsNamedWithTheKvCacheThatItCosts) {
  PlanInput in = input(1);
  in.device_free = 24 * kGiB;
  RunConfig c = config();
  EXPECT_EQ(needless(in, c), "");  // none was asked for
  c.batch_size = {64};
  const std::int64_t without = make_plan(in, c).max_sequence_tokens;
  c.cpu_offload = true;
  const MemoryPlan plan = make_plan(in, c);
  ASSERT_EQ(plan.device_shards, 30 * kBlock);
  ASSERT_LT(plan.max_sequence_tokens, without);
  EXPECT_EQ(needless(in, c),
            fmt::format("all blocks fit in device memory without --cpu-offload and none of them "
                        "moves; leave it out, and the KV cache holds {} tokens of a rank instead "
                        "of {}",
                        without, plan.max_sequence_tokens));
  c.kv_budget = 4 * kGiB;  // no more in either case
  EXPECT_EQ(needless(in, c),
            "all blocks fit in device memory without --cpu-offload and none of them moves: leave "
            "it out");
  c.nvme_offload_path = "/mnt/nvme";
  EXPECT_THAT(needless(in, c),
              AllOf(HasSubstr("without --cpu-offload and --nvme-offload-path and none"),
                    HasSubstr("leave them out")));
  c.gpu_weight_budget = 30 * kBlock;  // it is said how much may stay
  EXPECT_EQ(needless(in, c), "");
}

TEST_F(Plan, AnOffloadThatOnlyItsSlotsMakeNecessaryIsNamedWithWhatTravels) {
  PlanInput in = input(1);
  RunConfig c = config();
  c.kv_budget = kGiB;
  // Room for all blocks, and for none of the two slots that a block which travels needs.
  in.device_free = (make_plan(in, c).device_bytes() + kBlock / 2) * 100 / 95;
  c.cpu_offload = true;
  const MemoryPlan plan = make_plan(in, c);
  ASSERT_EQ(plan.host_shards, 2 * kBlock);
  EXPECT_EQ(needless(in, c),
            "all blocks fit in device memory without --cpu-offload, next to the same KV cache: no "
            "pass of a rank would then copy 768 MiB from host memory");
}

TEST_F(Plan, AnOffloadThatIsNeededIsNotQuestioned) {
  PlanInput in = input(1);
  in.device_free = 12 * kGiB;
  RunConfig c = config();
  c.cpu_offload = true;
  EXPECT_EQ(needless(in, c), "");
  // So much KV memory was asked for that the blocks have to leave.
  in.device_free = 24 * kGiB;
  c.kv_budget = 16 * kGiB;
  EXPECT_EQ(needless(in, c), "");
  in = input(1, true);
  in.host_free = 14 * kGiB;
  c = config();
  c.nvme_offload_path = "/mnt/nvme";
  EXPECT_EQ(needless(in, c), "");
}

TEST_F(Plan, OnTheCpuBackendAnOffloadWithoutNeedIsNamedUnlessItIsMeant) {
  const PlanInput in = input(2, true);
  RunConfig c = config();
  c.cpu_offload = true;
  EXPECT_EQ(
      needless(in, c),
      "all blocks fit in memory without --cpu-offload, next to the same KV cache: no pass of a "
      "rank would then copy 5.62 GiB within host memory; if that is what you want, say so "
      "with --gpu-weight-budget 0");
  c.cpu_offload = false;
  c.nvme_offload_path = "/mnt/nvme";
  EXPECT_THAT(needless(in, c), HasSubstr("would then read 5.62 GiB from storage"));
  c.gpu_weight_budget = 0;
  EXPECT_EQ(needless(in, c), "");
}

}  // namespace
}  // namespace zi
