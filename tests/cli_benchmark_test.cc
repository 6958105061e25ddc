// --benchmark and --trace, as the program's users see them.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "cli_harness.h"

namespace zi::test {
namespace {

using testing::HasSubstr;

TEST(CliBenchmark, PrintsThePublishedStatisticsForEachBatchSize) {
  const TemporaryFolder folder;
  const Ended ended = run_job(2, {"--model", model(), "--benchmark", "--batch-size", "1,2",
                                  "--max-new-tokens", "4", "--output", folder / "bench.json"});
  ASSERT_EQ(ended.code, 0) << ended.err;
  EXPECT_THAT(ended.out, HasSubstr("Throughput per token including tokenize: "));
  EXPECT_THAT(ended.out, HasSubstr("Tokenize and generate 40 (bs=1) tokens: "));
  EXPECT_THAT(ended.out, HasSubstr("Tokenize and generate 80 (bs=2) tokens: "));
  const auto lines = json_lines(read_file(folder / "bench.json"));
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[1].at("batch"), 2);
}

TEST(CliBenchmark, SaysWhichBatchSizesDoNotFitAndGoesOn) {
  const TemporaryFolder folder;
  // 1 MiB holds some hundred tokens of the bundled model: 2 lanes of 26, not 200; for a billion
  // lanes there is no plan at all.
  const Ended ended =
      run_job(2, {"--model", model(), "--benchmark", "--batch-size", "200,2,1000000000",
                  "--max-new-tokens", "4", "--kv-budget", "1MiB", "--output", folder / "b.json"});
  ASSERT_EQ(ended.code, 0) << ended.err;
  EXPECT_THAT(ended.out, HasSubstr("out of memory (bs=200): the KV cache holds "));
  EXPECT_THAT(ended.out, HasSubstr("out of memory (bs=1000000000): the plan does not fit"));
  const auto lines = json_lines(read_file(folder / "b.json"));
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_THAT(std::string(lines[0].at("out_of_memory")), HasSubstr("--kv-budget"));
  EXPECT_FALSE(lines[1].contains("out_of_memory"));
  EXPECT_GT(lines[1].at("ms_per_token"), 0);
  EXPECT_TRUE(lines[2].contains("out_of_memory"));
}

TEST(CliBenchmark, IsRefusedWithThePlanWhenNoBatchSizeFits) {
  const Ended ended = run_job(2, {"--model", model(), "--benchmark", "--batch-size", "1000000000"});
  EXPECT_EQ(ended.code, 2);
  EXPECT_THAT(ended.err, HasSubstr("the plan does not fit"));
}

TEST(CliBenchmark, SplitsThePassesIntoPartsThatMakeThemUp) {
  const TemporaryFolder folder;
  const Ended ended =
      run_job(2, {"--model", model(), "--benchmark", "--batch-size", "2", "--max-new-tokens", "16",
                  "--travel", "weights", "--nvme-offload-path", folder / "nvme", "--output", "-"});
  ASSERT_EQ(ended.code, 0) << ended.err;
  const auto line = json_lines(ended.out).at(0);
  const auto& split = line.at("split");
  double sum = 0;
  for (const char* part :
       {"compute_ms", "wait_read_ms", "wait_copy_ms", "wait_gather_ms", "host_ms"}) {
    EXPECT_GE(split.at(part), 0) << part;
    sum += split.at(part).get<double>();
  }
  // What is left over is the host's; only an overlap could make it more.
  EXPECT_NEAR(sum, line.at("pass_ms"), 0.02 * line.at("pass_ms").get<double>());
  EXPECT_GT(split.at("compute_ms"), 0);
  EXPECT_GT(split.at("gather_ms"), 0);
  std::set<std::string> links;
  for (const auto& link : line.at("links")) {
    links.insert(link.at("link"));
    EXPECT_GT(link.at("limit_gb_s"), 0);
  }
  EXPECT_EQ(links, (std::set<std::string>{"gather", "read", "weights"}));
}

/// Where each block was, in one pass of one rank: its interval by category.
using Intervals = std::map<std::string, std::pair<double, double>>;

TEST(Trace, HoldsEveryUnitOfEveryPassOnEachRankInTheOrderOfItsWay) {
  const TemporaryFolder folder;
  const Ended ended =
      run_job(2, {"--model", model(), "--prompt", "In the beginning", "--max-new-tokens", "5",
                  "--ignore-eos", "--travel", "weights", "--nvme-offload-path", folder / "nvme",
                  "--trace", folder / "trace.json"});
  ASSERT_EQ(ended.code, 0) << ended.err;
  const auto trace = nlohmann::json::parse(read_file(folder / "trace.json"));
  EXPECT_EQ(trace.at("otherData").at("ranks"), 2);
  EXPECT_EQ(trace.at("otherData").at("passes"), 5);
  std::map<std::string, Intervals> blocks;  // by rank, pass and block
  std::set<std::string> names;
  for (const auto& e : trace.at("traceEvents")) {
    if (e.at("ph") == "M") {
      if (e.at("name") == "process_name") names.insert(e.at("args").at("name"));
      continue;
    }
    ASSERT_EQ(e.at("ph"), "X");
    const double begin = e.at("ts"), length = e.at("dur");
    EXPECT_GE(begin, 0);
    EXPECT_GT(length, 0);
    const std::string name = e.at("name");
    if (!name.starts_with("block ")) continue;
    const std::string key =
        fmt::format("{} {} {}", e.at("pid").get<int>(), e.at("args").at("pass").get<int>(), name);
    EXPECT_TRUE(blocks[key].try_emplace(e.at("cat"), begin, begin + length).second)
        << key << " twice";
  }
  EXPECT_EQ(names, (std::set<std::string>{"rank 0", "rank 1"}));
  const int layers = nlohmann::json::parse(read_file(model() + "/config.json")).at("n_layer");
  EXPECT_EQ(blocks.size(), static_cast<std::size_t>(2 * 5 * layers));
  constexpr double kSlack = 1;  // microseconds, of rounding
  for (const auto& [key, way] : blocks) {
    for (const char* stage : {"read", "copy", "gather"}) ASSERT_TRUE(way.contains(stage)) << key;
    EXPECT_LE(way.at("read").first, way.at("copy").first + kSlack) << key;
    EXPECT_LE(way.at("read").second, way.at("copy").second + kSlack) << key;
    EXPECT_LE(way.at("copy").second, way.at("gather").first + kSlack) << key;
    // The rank without a prompt computes nothing, but gathers.
    if (!way.contains("compute")) continue;
    EXPECT_LE(way.at("gather").second, way.at("compute").first + kSlack) << key;
  }
}

TEST(Trace, SaysWhatEachPassExchangedWhereWeightsStay) {
  const TemporaryFolder folder;
  const Ended ended =
      run_job(2, {"--model", model(), "--prompt", "In the beginning", "--max-new-tokens", "5",
                  "--ignore-eos", "--travel", "activations", "--trace", folder / "trace.json"});
  ASSERT_EQ(ended.code, 0) << ended.err;
  EXPECT_THAT(ended.err, HasSubstr("weights stayed in 5 of 5 passes"));
  const auto trace = nlohmann::json::parse(read_file(folder / "trace.json"));
  const int layers = nlohmann::json::parse(read_file(model() + "/config.json")).at("n_layer");
  int passes = 0;
  for (const auto& e : trace.at("traceEvents")) {
    if (e.at("ph") != "X") continue;
    EXPECT_NE(e.at("cat"), "gather");
    if (!e.at("name").get<std::string>().starts_with("pass ")) continue;
    ++passes;
    EXPECT_EQ(e.at("args").at("weights_stay"), true);
    // Four products of a block and the head's, two calls each.
    EXPECT_EQ(e.at("args").at("exchanges"), 2 * (4 * layers + 1));
    EXPECT_GT(e.at("args").at("exchanged_bytes"), 0);
  }
  EXPECT_EQ(passes, 2 * 5);
}

TEST(Trace, APathThatCannotBeWrittenEndsTheJobBeforeItLoads) {
  const Ended ended =
      run_job(2, {"--model", model(), "--prompt", "x", "--trace", "/nowhere/t.json"});
  EXPECT_EQ(ended.code, 2);
  EXPECT_THAT(ended.err, HasSubstr("/nowhere/t.json: --trace cannot be written: No such file"));
}

}  // namespace
}  // namespace zi::test
