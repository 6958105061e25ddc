#include "measure/benchmark_cell.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

namespace zi {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

/// 2 ranks, 8 lanes each, 100 new tokens, 5 cycles: 8000 tokens in 500 passes of 20 ms.
BenchmarkCell cell() {
  BenchmarkCell c;
  c.batch = 8;
  c.new_tokens = 8000;
  c.passes = 500;
  c.generate_seconds = 10;
  c.first_seconds = 2.5;
  c.split.compute = 0.012;
  c.split.waited[Link::kGather] = 0.007;
  c.split.busy[Link::kGather] = 0.019;
  c.links = {{Link::kGather, "gathered from the other ranks", 6e9, 0.019, 400e9},
             {Link::kProducts, "weights multiplied", 14e9, 0, 0}};
  c.peak_host_bytes = 1 << 30;
  return c;
}

BenchmarkSetting setting() {
  BenchmarkSetting s;
  s.world = 2;
  s.backend = "cuda";
  s.block_format = kInt4Weights;
  s.tiers = {Tier::kNvme, Tier::kHost, Tier::kNvme};
  s.cycles = 5;
  s.ready_seconds = 30;
  return s;
}

TEST(BenchmarkCell, PrintsThePublishedStatisticsByTheirDefinitions) {
  const std::string text = text_of(cell(), setting());
  EXPECT_THAT(text, HasSubstr("Throughput per token including tokenize: 1.25 msecs\n"));
  EXPECT_THAT(text, HasSubstr("Start to ready to generate: 30.000 secs\n"));
  EXPECT_THAT(text, HasSubstr("Tokenize and generate 8000 (bs=8) tokens: 2.500 secs\n"));
  EXPECT_THAT(text, HasSubstr("Start to finish: 32.500 secs\n"));
}

TEST(BenchmarkCell, SplitsAPassCompletely) {
  const BenchmarkCell c = cell();
  EXPECT_NEAR(c.host_seconds(), 0.001, 1e-12);
  EXPECT_THAT(
      text_of(c, setting()),
      HasSubstr(
          "A pass: 20.00 msecs: compute 12.00, waiting for gathers 7.00, host 1.00; meanwhile "
          "gathers 19.00"));
}

TEST(LinkRow, SaysTheShareOfTheLimitAsItsReaderWantsIt) {
  const LinkUse use = cell().links.front();
  EXPECT_EQ(link_row(use, 0.020, RowOf::kSummary),
            "  gathered from the other ranks        6.00 GB a pass      300 GB/s, 316 GB/s while "
            "moving  (limit 400 GB/s: 75%)\n");
  EXPECT_EQ(link_row(use, 0.020, RowOf::kBenchmark),
            "  gathered from the other ranks        6.00 GB a pass      300 GB/s of 400 GB/s "
            "possible: 0.75\n");
}

TEST(LinkRow, SaysNoShareOfALimitThatIsNotKnownOrWasPassed) {
  LinkUse use = cell().links.back();
  for (const RowOf of : {RowOf::kSummary, RowOf::kBenchmark}) {
    use.limit = 0;
    EXPECT_EQ(link_row(use, 0.020, of),
              "  weights multiplied                   14.0 GB a pass      700 GB/s\n");
    use.limit = 650e9;
    EXPECT_EQ(link_row(use, 0.020, of),
              "  weights multiplied                   14.0 GB a pass      700 GB/s  (the bare link "
              "gave 650 GB/s: the machine was busier then)\n");
  }
}

TEST(BenchmarkCell, TheJsonHoldsEveryFieldWithItsUnit) {
  const auto line = nlohmann::ordered_json::parse(json_of(cell(), setting()));
  std::set<std::string> keys;
  for (const auto& [key, value] : line.items()) keys.insert(key);
  EXPECT_EQ(keys, (std::set<std::string>{"name",
                                         "world",
                                         "command",
                                         "backend",
                                         "device",
                                         "model",
                                         "dtype",
                                         "weight_format",
                                         "head_format",
                                         "tier",
                                         "batch",
                                         "cycles",
                                         "new_tokens",
                                         "ms_per_token",
                                         "pass_ms",
                                         "ready_s",
                                         "first_generate_s",
                                         "generate_s",
                                         "finish_s",
                                         "load_s",
                                         "split",
                                         "links",
                                         "peak_host_bytes",
                                         "peak_device_bytes"}));
  EXPECT_EQ(line.at("tier"), "host + nvme");
  BenchmarkSetting staying = setting();
  staying.travel = Travel::kActivations;
  EXPECT_EQ(nlohmann::json::parse(json_of(cell(), staying)).at("tier"),
            "host + nvme, activations travel");
  EXPECT_EQ(line.at("dtype"), "bfloat16");
  EXPECT_EQ(line.at("weight_format"), "int4g16f8");
  EXPECT_EQ(line.at("head_format"), "bfloat16");
  EXPECT_DOUBLE_EQ(line.at("ms_per_token"), 1.25);
  std::vector<std::string> parts;
  for (const auto& [key, value] : line.at("split").items()) parts.push_back(key);
  EXPECT_THAT(parts, ElementsAre("compute_ms", "wait_read_ms", "wait_copy_ms", "wait_gather_ms",
                                 "host_ms", "copy_ms", "gather_ms"));
  EXPECT_DOUBLE_EQ(line.at("split").at("wait_gather_ms"), 7);
  EXPECT_DOUBLE_EQ(line.at("split").at("gather_ms"), 19);
  EXPECT_EQ(line.at("links").at(0).at("link"), "gather");
  EXPECT_EQ(line.at("links").at(1).at("link"), "weights");
  EXPECT_DOUBLE_EQ(line.at("links").at(0).at("achieved_gb_s"), 300);
  EXPECT_DOUBLE_EQ(line.at("links").at(0).at("ratio"), 0.75);
  EXPECT_FALSE(line.at("links").at(1).contains("ratio"));  // its limit was not measured
}

TEST(BenchmarkCell, OutOfMemoryIsACellWithoutNumbers) {
  BenchmarkCell c;
  c.batch = 128;
  c.out_of_memory = "the KV cache is too small";
  const auto line = nlohmann::json::parse(json_of(c, setting()));
  EXPECT_EQ(line.at("out_of_memory"), "the KV cache is too small");
  EXPECT_EQ(line.at("batch"), 128);
  EXPECT_FALSE(line.contains("ms_per_token"));
  EXPECT_THAT(text_of(c, setting()),
              HasSubstr("out of memory (bs=128): the KV cache is too small"));
}

}  // namespace
}  // namespace zi
