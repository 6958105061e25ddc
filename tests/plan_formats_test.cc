// Plans of weights in fewer bits, and what is said of them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "plan/plan_report.h"
#include "plan_fixture.h"

namespace zi {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

TEST_F(Plan, AdvisesFewerBitsWithWhatTheyGive) {
  RunConfig config = run_of("7b1");
  config.cpu_offload = true;
  config.gpu_weight_budget = 0;
  const auto with = [&](WeightChoice choice) {
    RunConfig other = config;
    other.weight_format = choice;
    return planned(other, like("h100"));
  };
  const auto rate = [](const nlohmann::json& plan) {
    return format_rate(plan.at("pass").at("tokens_per_s"));
  };
  const auto stored = with(WeightChoice::kStored), int8 = with(WeightChoice::kInt8),
             int4 = with(WeightChoice::kInt4);
  EXPECT_THAT(
      advice_of(stored),
      HasSubstr("fewer bits: --weight-format int8 gives " + rate(int8) + " tokens/s instead of " +
                rate(stored) + ", a pass takes " + format_seconds(int8.at("pass").at("pass_s")) +
                " instead of " + format_seconds(stored.at("pass").at("pass_s")) + "; int4 gives " +
                rate(int4) + " tokens/s; answers differ a little"));
  EXPECT_THAT(advice_of(int8),
              AllOf(HasSubstr("fewer bits: --weight-format int4 gives " + rate(int4)),
                    Not(HasSubstr("--weight-format int8"))));
  EXPECT_THAT(advice_of(int4), Not(HasSubstr("fewer bits")));
  // Where products bound a pass, they gain nothing.
  config = run_of("7b1");
  config.batch_size = {512};
  config.kv_budget = 512 * 16 * static_cast<std::size_t>(kKv);
  PlanOptions options = like("h100");
  options.tokens = 16;
  EXPECT_THAT(planned(config, options).at("pass").at("bottleneck"), "products");
  EXPECT_THAT(advice_of(planned(config, options)), Not(HasSubstr("fewer bits")));
}

TEST_F(Plan, PackedBlocksTakeTheirOwnBytesEverywhere) {
  // Rows of 4096 and 16384 columns: int8 has a byte a column and one for each 32; int4 a byte for
  // two columns and one for each 16.
  constexpr double kInt8Block =
      11 * 4096.0 * (4096 + 128) - 3 * 4096.0 * (4096 + 128) + 4096.0 * (16384 + 512);
  constexpr double kInt4Block = 8 * 4096.0 * (2048 + 256) + 4096.0 * (8192 + 1024);
  for (const auto& [choice, block, name] :
       {std::tuple{WeightChoice::kInt8, kInt8Block, "int8g32f8"},
        std::tuple{WeightChoice::kInt4, kInt4Block, "int4g16f8"}}) {
    RunConfig config = run_of("7b1");
    config.weight_format = choice;
    // Head and embedding are int8 then, unless something else is asked for.
    const auto usual = planned(config, like("h100"));
    EXPECT_EQ(usual.at("head_format"), "int8g32f8");
    EXPECT_NEAR(usual.at("memory").at("head_shard").get<double>(), kHead * 8.25 / 16, 4096);
    config.head_format = WeightChoice::kStored;
    const auto plan = planned(config, like("h100"));
    EXPECT_EQ(plan.at("weight_format"), name);
    EXPECT_EQ(plan.at("head_format"), "bfloat16");
    EXPECT_EQ(plan.at("compute_dtype"), "bfloat16");
    EXPECT_EQ(plan.at("memory").at("block_shards_device"), 30 * block);
    EXPECT_EQ(plan.at("memory").at("head_shard"), kHead);
    EXPECT_DOUBLE_EQ(link_of(plan.at("pass"), "device memory").at("bytes"),
                     30 * block + kHead + 8 * 512 * kKv);
    EXPECT_DOUBLE_EQ(link_of(plan.at("pass"), "products").at("operations"), 8 * (kBlocks + kHead));
    config.cpu_offload = true;
    config.gpu_weight_budget = 0;
    config.head_format = choice;
    const auto offloaded = planned(config, like("h100"));
    EXPECT_EQ(offloaded.at("head_format"), name);
    EXPECT_LT(offloaded.at("memory").at("head_shard"), 0.6 * kHead);
    EXPECT_DOUBLE_EQ(link_of(offloaded.at("pass"), "copy").at("bytes"), 30 * block);
    EXPECT_THAT(plan_text(config, like("h100")),
                HasSubstr(choice == WeightChoice::kInt8
                              ? "30 blocks, int8 in groups of 32"
                              : "7.07 billion parameters, int4 in groups of 16, computed in "
                                "bfloat16"));
  }
}

TEST_F(Plan, ProductsOfPackedWeightsAreFasterOnlyWhereReadingThemTakesTheTime) {
  RunConfig config = run_of("7b1");
  const auto rate = [&](WeightChoice choice, std::int64_t batch) {
    config.weight_format = config.head_format = choice;
    config.batch_size = {batch};
    return link_of(planned(config, like("h100")).at("pass"), "products")
        .at("tflop_s")
        .get<double>();
  };
  EXPECT_NEAR(rate(WeightChoice::kInt8, 1) / rate(WeightChoice::kStored, 1), 16 / 8.25, 1e-9);
  EXPECT_NEAR(rate(WeightChoice::kInt4, 1) / rate(WeightChoice::kStored, 1), 16 / 4.5, 1e-9);
  EXPECT_LE(rate(WeightChoice::kInt4, 64), rate(WeightChoice::kInt4, 4096));
  EXPECT_DOUBLE_EQ(rate(WeightChoice::kInt4, 4096), rate(WeightChoice::kStored, 4096));
}

TEST_F(Plan, AnOffloadIsNeedlessWhenThePackedBlocksFit) {
  RunConfig config = run_of("176b");
  config.cpu_offload = true;
  const auto notes = [&] { return planned(config, like("h100", 2)).at("notes").dump(); };
  EXPECT_THAT(notes(), Not(HasSubstr("all blocks fit")));
  config.weight_format = WeightChoice::kInt4;
  EXPECT_THAT(notes(), HasSubstr("all blocks fit in device memory without --cpu-offload"));
}

}  // namespace
}  // namespace zi
