// What `zero-infer plan` says, against cases computed by hand.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "config_refusal.h"
#include "plan/gpu_list.h"
#include "plan/kept_limits.h"
#include "plan/plan_report.h"
#include "plan/planner.h"
#include "plan_fixture.h"

namespace zi {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

// 176b: H = 14336, 70 blocks of 12 H^2 elements, V = 250880; bfloat16.
constexpr double kLargeBlock = 12.0 * 14336 * 14336 * 2;
constexpr double kLargeBlocks = 70 * kLargeBlock;
constexpr double kLargeHead = 250880.0 * 14336 * 2;
constexpr double kLargeKv = 4'014'080;

TEST_F(Plan, The176bShapeOnEightH100GathersSevenEighthsOfItsBlocksInEveryPass) {
  const auto plan = planned(run_of("176b"), like("h100", 8));
  EXPECT_EQ(plan.at("memory").at("block_shards_device"), kLargeBlocks / 8);
  EXPECT_EQ(plan.at("memory").at("slots"), 2 * kLargeBlock);
  const auto& pass = plan.at("pass");
  EXPECT_EQ(pass.at("batch"), 8);
  // 302.1 GB of blocks, and for 8 rows hidden states, a slice of logits and an eighth of the
  // embedding rows from 7 ranks.
  const double exchange = 8 * (14336 * 2 + 250880.0 / 8 * 4 + 14336.0 * 4 / 8);
  const double gathered = 7 * (kLargeBlocks / 8 + exchange);
  EXPECT_NEAR(kLargeBlocks * 7 / 8, 302.1e9, 0.1e9);
  EXPECT_DOUBLE_EQ(link_of(pass, "gather").at("bytes"), gathered);
  EXPECT_DOUBLE_EQ(link_of(pass, "gather").at("seconds"), gathered / 351e9);
  EXPECT_EQ(pass.at("bottleneck"), "gather");
  EXPECT_DOUBLE_EQ(pass.at("pass_s"), gathered / 351e9);
  EXPECT_NEAR(pass.at("pass_s"), 0.861, 0.001);
  EXPECT_DOUBLE_EQ(pass.at("tokens_per_s"), 8 * 8 / (gathered / 351e9));
  // Slots written and read, own shards read for them, and by 7 ranks; head; keys and values.
  const double memory = 2 * kLargeBlocks + kLargeBlocks / 8 + kLargeBlocks * 7 / 8 +
                        kLargeHead / 8 + 8 * 512 * kLargeKv;
  EXPECT_DOUBLE_EQ(link_of(pass, "device memory").at("bytes"), memory);
  EXPECT_DOUBLE_EQ(link_of(pass, "products").at("operations"), 8 * (kLargeBlocks + kLargeHead));
}

TEST_F(Plan, WhereWeightsStayTheInputsAndResultsOfTheirProductsTravel) {
  RunConfig config = run_of("176b");
  const auto gathers = planned(config, like("h100", 8));
  EXPECT_EQ(gathers.at("pass").at("travel"), "weights");
  EXPECT_EQ(gathers.at("pass").at("exchanges"), 0);
  EXPECT_THAT(advice_of(gathers), HasSubstr("weights that stay: --travel activations"));
  config.travel = Travel::kActivations;
  const auto plan = planned(config, like("h100", 8));
  const auto& memory = plan.at("memory");
  EXPECT_EQ(memory.at("block_shards_device"), kLargeBlocks / 8);
  EXPECT_EQ(memory.at("slots"), 0);
  EXPECT_GT(memory.at("kv"), gathers.at("memory").at("kv")) << "what slots took is the cache's";
  const auto& pass = plan.at("pass");
  EXPECT_EQ(pass.at("travel"), "activations");
  EXPECT_EQ(pass.at("exchanges"), 70 * 4 * 2);
  // Inputs of 2 bytes: H, H, H and 4 H. An eighth of the results: 3 H, H and H in float32, 4 H
  // after the activation in 2 bytes. From 7 ranks for 8 rows each, and the head's as before.
  constexpr double kH = 14336;
  const double block = 7 * kH * 2 + (5 * kH * 4 + 4 * kH * 2) / 8;
  const double head = 8 * (kH * 2 + 250880.0 / 8 * 4 + kH * 4 / 8);
  const auto exchange = link_of(pass, "gather");
  EXPECT_DOUBLE_EQ(exchange.at("bytes"), 7 * (70 * 8 * block + head));
  EXPECT_GT(exchange.at("seconds"), 560 * 3.5e-6) << "each call takes its time";
  // Products come after their exchange, not beside it.
  double slowest = 0;
  for (const char* link : {"device memory", "products"}) {
    slowest = std::max(slowest, link_of(pass, link).at("seconds").get<double>());
  }
  EXPECT_DOUBLE_EQ(pass.at("pass_s"), exchange.at("seconds").get<double>() + slowest);
  // An own shard is read where it rests, and nothing is written.
  EXPECT_DOUBLE_EQ(link_of(pass, "device memory").at("bytes"),
                   kLargeBlocks / 8 + kLargeHead / 8 + 8 * 512 * kLargeKv);
  EXPECT_THAT(plan_text(config, like("h100", 8)),
              HasSubstr("weights stay: activations travel in 560 exchanges"));

  // In each pass the faster way; slots are there for the other.
  config.travel = Travel::kAuto;
  const auto either = planned(config, like("h100", 8));
  EXPECT_EQ(either.at("pass"), plan.at("pass"));
  EXPECT_EQ(either.at("memory").at("slots"), 2 * kLargeBlock);

  // Of a job of one rank nothing travels either way.
  RunConfig alone = run_of("560m");
  alone.travel = Travel::kActivations;
  EXPECT_EQ(planned(alone, like("h100")), planned(run_of("560m"), like("h100")));
}

TEST_F(Plan, TheHostsShareOfProductsNeedNotBeCopied) {
  RunConfig config = run_of("7b1");
  config.cpu_offload = true;
  config.gpu_weight_budget = 0;
  const auto copied = planned(config, like("h100"));
  EXPECT_EQ(copied.at("pass").at("cpu_share"), 0);
  EXPECT_EQ(link_of(copied.at("pass"), "copy").at("bytes"), kBlocks);
  config.cpu_share = 0.25;
  const auto quarter = planned(config, like("h100"));
  const auto& pass = quarter.at("pass");
  EXPECT_EQ(pass.at("cpu_share"), 0.25);
  EXPECT_DOUBLE_EQ(link_of(pass, "copy").at("bytes"), 0.75 * kBlocks);
  EXPECT_DOUBLE_EQ(link_of(pass, "host memory").at("bytes"), kBlocks);
  EXPECT_EQ(
      link_of(pass, "device memory").at("bytes").get<double>(),
      link_of(copied.at("pass"), "device memory").at("bytes").get<double>() - 2 * 0.25 * kBlocks)
      << "neither written nor read there";
  EXPECT_LT(pass.at("pass_s"), copied.at("pass").at("pass_s"));
  EXPECT_THAT(plan_text(config, like("h100")),
              HasSubstr("the host's cores multiply 25% of the weights in its memory\n"));
  // With one rank's blocks on the device, none is in the host's memory.
  config.cpu_offload = false;
  config.gpu_weight_budget.reset();
  EXPECT_EQ(planned(config, like("h100")).at("pass"),
            planned(run_of("7b1"), like("h100")).at("pass"));
}

TEST_F(Plan, AnA100GathersAtThreeQuartersOfItsDataSheet) {
  const auto plan = planned(run_of("176b"), like("a100", 8));
  EXPECT_NEAR(plan.at("pass").at("pass_s"), 302.1e9 / 225e9, 0.002);
  EXPECT_THAT(plan.at("limits").at("source"), HasSubstr("data sheet"));
  EXPECT_THAT(planned(run_of("176b"), like("h100", 8)).at("limits").at("source"),
              AllOf(HasSubstr("measured"), Not(HasSubstr("data sheet"))));
}

TEST_F(Plan, The7b1ShapeRestsOnOneCardOf24GigabytesWithItsKvCache) {
  const auto plan = planned(run_of("7b1"), like("rtx4090"));
  const auto& memory = plan.at("memory");
  EXPECT_EQ(memory.at("block_shards_device"), kBlocks);
  EXPECT_EQ(memory.at("head_shard"), kHead);
  EXPECT_EQ(memory.at("slots"), 0);
  EXPECT_LE(memory.at("device_bytes"), 24e9);
  // 8 lanes of 2048 tokens fit: 32 of 512.
  EXPECT_EQ(memory.at("kv"), 8 * 2048 * kKv);
  EXPECT_EQ(plan.at("kv").at("lanes").at(1), (nlohmann::json{{"tokens", 512}, {"lanes", 32}}));
  const auto& pass = plan.at("pass");
  EXPECT_EQ(pass.at("links").size(), 2u);
  const double read = kBlocks + kHead + 8 * 512 * kKv;
  EXPECT_DOUBLE_EQ(link_of(pass, "device memory").at("bytes"), read);
  EXPECT_DOUBLE_EQ(pass.at("pass_s"), read / (1008e9 * 0.85));
  EXPECT_EQ(pass.at("bottleneck"), "device memory");
}

TEST_F(Plan, OffloadedBlocksAreCopiedInEveryPass) {
  RunConfig config = run_of("7b1");
  config.cpu_offload = true;
  config.gpu_weight_budget = 0;
  const auto plan = planned(config, like("rtx4090"));
  EXPECT_EQ(plan.at("memory").at("block_shards_host"), kBlocks);
  EXPECT_EQ(plan.at("pass").at("bottleneck"), "copy");
  EXPECT_DOUBLE_EQ(plan.at("pass").at("pass_s"), kBlocks / (31.5e9 * 0.8));
  EXPECT_THAT(advice_of(plan), HasSubstr("without offload all blocks stay where they run"));
}

TEST_F(Plan, AnOffloadWithoutNeedIsNoted) {
  RunConfig config = run_of("7b1");
  const auto notes = [&] { return planned(config, like("h100")).at("notes").dump(); };
  EXPECT_THAT(notes(), Not(HasSubstr("all blocks fit")));
  config.cpu_offload = true;
  EXPECT_THAT(notes(), HasSubstr("all blocks fit in device memory without --cpu-offload"));
  config = run_of("176b");
  config.cpu_offload = true;
  EXPECT_THAT(notes(), Not(HasSubstr("all blocks fit")));
}

TEST_F(Plan, TheRanksOfAHostShareItsDiskAndItsMemory) {
  RunConfig config = run_of("7b1");
  config.nvme_offload_path = "/somewhere";
  config.gpu_weight_budget = 0;
  const auto one = planned(config, like("h100", 1));
  const auto two = planned(config, like("h100", 2));
  EXPECT_DOUBLE_EQ(link_of(one.at("pass"), "nvme read").at("seconds"), kBlocks / 1.7e9);
  EXPECT_DOUBLE_EQ(link_of(two.at("pass"), "nvme read").at("seconds"), kBlocks / 1.7e9);
  EXPECT_DOUBLE_EQ(link_of(two.at("pass"), "nvme read").at("bytes"), kBlocks / 2);
  EXPECT_EQ(two.at("pass").at("bottleneck"), "nvme read");
  EXPECT_EQ(two.at("host_peak_bytes"), 2 * two.at("memory").at("host_bytes").get<std::size_t>());
  EXPECT_EQ(two.at("host_disk_bytes"), kBlocks);
}

TEST_F(Plan, TheBottleneckMovesFromTheLinkToMemoryAsLanesGrow) {
  const auto plan = planned(run_of("7b1"), like("h100", 4));
  EXPECT_EQ(batch_of(plan, 1).at("bottleneck"), "gather");
  EXPECT_EQ(batch_of(plan, 256).at("bottleneck"), "device memory");
  double last = 0;
  for (const auto& batch : plan.at("batches")) {
    EXPECT_GT(batch.at("tokens_per_s"), last);
    last = batch.at("tokens_per_s");
  }
}

TEST_F(Plan, BatchesGoUpToWhatTheCacheHoldsAndNameThoseThatItDoesNot) {
  RunConfig config = run_of("7b1");
  config.kv_budget = 100 * 16 * static_cast<std::size_t>(kKv);  // 100 pages
  config.batch_size = {3, 7};
  PlanOptions options = like("h100");
  options.tokens = 300;  // 19 pages: 5 sequences
  const auto plan = planned(config, options);
  std::vector<int> batches;
  for (const auto& b : plan.at("batches")) batches.push_back(b.at("batch"));
  EXPECT_THAT(batches, ElementsAre(1, 2, 3, 4, 5, 7));
  EXPECT_EQ(batch_of(plan, 5).at("fits"), true);
  EXPECT_EQ(batch_of(plan, 7), (nlohmann::json{{"batch", 7}, {"fits", false}}));
  EXPECT_THAT(advice_of(plan), HasSubstr("--batch-size 5: the KV cache holds no more"));
}

TEST_F(Plan, AdviceIsPlannedAnew) {
  RunConfig config = run_of("176b");
  config.nvme_offload_path = "/somewhere";
  const auto plan = planned(config, like("h100", 1));
  const std::string advice = advice_of(plan);
  EXPECT_THAT(advice, HasSubstr("another tier: with --cpu-offload, a pass takes"));
  EXPECT_THAT(advice,
              HasSubstr("more ranks: 8 hold all blocks on their devices: a pass takes 861 ms"));
  // A small model gathers for nothing, where every rank can hold all of it.
  RunConfig small = run_of("560m");
  EXPECT_THAT(advice_of(planned(small, like("h100", 4))),
              AllOf(HasSubstr("fewer gathers: --replicated-blocks auto, a pass takes"),
                    HasSubstr("4 jobs of one rank each")));
  small.travel = Travel::kAuto;
  EXPECT_THAT(advice_of(planned(small, like("h100", 4))),
              HasSubstr("fewer exchanges: --replicated-blocks auto, a pass takes"));
  small.replicated_blocks.reset();
  EXPECT_THAT(advice_of(planned(small, like("h100", 4))),
              AllOf(Not(HasSubstr("fewer gathers")), Not(HasSubstr("fewer exchanges"))));
}

TEST_F(Plan, AWrongGpuIsRefusedOnOneLineWithTheList) {
  const std::string message = refusal([] { plan_text(run_of("7b1"), like("rtx409")); });
  EXPECT_THAT(message, AllOf(HasSubstr("`rtx409`"), HasSubstr("did you mean `rtx4090`?"),
                             HasSubstr("h100, h200")));
  RunConfig cpu = run_of("7b1");
  cpu.backend = BackendChoice::kCpu;
  EXPECT_THAT(refusal([&] { plan_text(cpu, like("h100")); }), HasSubstr("--backend cpu"));
}

TEST_F(Plan, RanksMustFillTheirHosts) {
  PlanOptions options = like("h100", 8);
  options.ranks_per_host = 3;
  EXPECT_THAT(refusal([&] { plan_text(run_of("7b1"), options); }),
              HasSubstr("--ranks 8 cannot be spread over hosts of --ranks-per-host 3"));
  options.ranks_per_host = 4;
  const auto plan = planned(run_of("7b1"), options);
  EXPECT_EQ(plan.at("ranks_per_host"), 4);
  EXPECT_THAT(plan.at("notes").dump(), HasSubstr("the network may be slower"));
}

TEST_F(Plan, TakesAsManyRanksAsMpirunStarted) {
  setenv("OMPI_COMM_WORLD_SIZE", "4", 1);
  setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2", 1);
  PlanOptions options = like("h100", 0);
  EXPECT_EQ(planned(run_of("7b1"), options).at("ranks"), 4);
  EXPECT_EQ(planned(run_of("7b1"), options).at("ranks_per_host"), 2);
  options.ranks = 8;
  EXPECT_EQ(planned(run_of("7b1"), options).at("ranks"), 8);
}

TEST_F(Plan, ARefusedPlanShowsTheTable) {
  try {
    plan_text(run_of("176b"), like("h100", 4));
    FAIL() << "nothing was refused";
  } catch (const MemoryError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("the plan does not fit"),
                                    HasSubstr("block shards, device     80.4 GiB"),
                                    HasSubstr("= device memory"), HasSubstr("--cpu-offload"),
                                    HasSubstr("or give --weight-format int8 or int4")));
  }
}

TEST_F(Plan, AMissingModelIsNamedWithWhatAPlanNeeds) {
  RunConfig config = run_of("7b1");
  config.model = "bigscience/not-there";
  try {
    plan_text(config, like("h100"));
    FAIL() << "nothing was refused";
  } catch (const CheckpointError& error) {
    EXPECT_THAT(error.what(), HasSubstr("--model config/models/bloom-176b"));
  }
}

TEST_F(Plan, AssumesBfloat16WithoutWeightsAndReadsTheTypeOfThoseThatAreThere) {
  EXPECT_THAT(planned(run_of("560m"), like("l4")).at("notes").dump(),
              HasSubstr("there are no weights: bfloat16 is assumed"));
  RunConfig config;
  config.model = std::string(ZI_TEST_DATA) + "/bloom-kjv";
  const auto plan = planned(config, like("l4"));
  EXPECT_THAT(plan.at("notes").dump(), Not(HasSubstr("assumed")));
  EXPECT_NEAR(plan.at("parameters"), 8.7e6, 0.05e6);
}

TEST_F(Plan, GathersBetweenHostsBoundAPassAsThoseWithinOne) {
  PlanOptions within = like("h100", 2), between = like("h100", 2);
  between.ranks_per_host = 1;
  EXPECT_EQ(planned(run_of("7b1"), between).at("pass").at("tokens_per_s"),
            planned(run_of("7b1"), within).at("pass").at("tokens_per_s"));
}

TEST_F(Plan, TheJsonHoldsTheDocumentedFields) {
  RunConfig config = run_of("7b1");
  config.replicated_blocks.reset();
  const auto plan = planned(config, like("h100", 2));
  std::set<std::string> keys;
  for (const auto& [key, value] : plan.items()) keys.insert(key);
  EXPECT_EQ(keys, (std::set<std::string>{"name",
                                         "model",
                                         "parameters",
                                         "weight_format",
                                         "head_format",
                                         "compute_dtype",
                                         "ranks",
                                         "ranks_per_host",
                                         "partition",
                                         "batch",
                                         "tokens",
                                         "notes",
                                         "tiers",
                                         "replicated_blocks",
                                         "memory",
                                         "kv",
                                         "host_peak_bytes",
                                         "host_disk_bytes",
                                         "pass",
                                         "batches",
                                         "advice",
                                         "limits"}));
  EXPECT_EQ(plan.at("name"), "plan");
  EXPECT_EQ(plan.at("tiers").size(), 30u);
  EXPECT_EQ(plan.at("tiers").at(0), "device");
  EXPECT_EQ(plan.at("replicated_blocks"), 30);
  const auto& memory = plan.at("memory");
  std::size_t device = 0;
  for (const char* part :
       {"block_shards_device", "block_replicas", "head_shard", "vectors", "slots", "kv",
        "workspace", "logits", "product_exchange", "row_exchange", "inputs"}) {
    device += memory.at(part).get<std::size_t>();
  }
  EXPECT_EQ(memory.at("device_bytes"), device);
  EXPECT_LE(memory.at("device_bytes"), memory.at("device_room_bytes"));
  for (const auto& batch : plan.at("batches")) {
    double slowest = 0;
    for (const auto& link : batch.at("links")) {
      const bool products = link.at("link") == "products";
      const double amount = link.at(products ? "operations" : "bytes");
      const double rate =
          products ? link.at("tflop_s").get<double>() * 1e12 : link.at("gb_s").get<double>() * 1e9;
      EXPECT_NEAR(link.at("seconds"), amount / rate, 1e-9 * amount / rate);
      slowest = std::max(slowest, link.at("seconds").get<double>());
    }
    EXPECT_EQ(batch.at("pass_s"), slowest);
  }
}

TEST_F(Plan, TheTextSaysTheSameForPeople) {
  const std::string text = plan_text(run_of("176b"), like("h100", 8));
  EXPECT_THAT(
      text,
      AllOf(HasSubstr("176 billion parameters, bfloat16"),
            HasSubstr("block shards, device     40.2 GiB  70 blocks"),
            HasSubstr("KV cache: 4.01 MB per token"),
            HasSubstr("gather               302 GB       351 GB/s     861 ms  <- bottleneck")));
  EXPECT_THAT(text, AllOf(HasSubstr("Memory of a host at its peak"),
                          HasSubstr("What would help\n  - more lanes: --batch-size"),
                          HasSubstr("a pass takes just as long")));
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("  - ")) {
      EXPECT_LE(line.size(), 110u) << line;
    }
  }
}

TEST(PlanText, NumbersHaveThreeDigits) {
  EXPECT_EQ(format_seconds(2.256), "2.26 s");
  EXPECT_EQ(format_seconds(0.8607), "861 ms");
  EXPECT_EQ(format_seconds(0.99999), "1.00 s");
  EXPECT_EQ(format_seconds(0.00505), "5.05 ms");
  EXPECT_EQ(format_seconds(0.0000123), "12.3 us");
  EXPECT_EQ(format_rate(0.00575), "0.00575");
  EXPECT_EQ(format_rate(1234), "1234");
}

}  // namespace
}  // namespace zi
