// The program as a user runs it: flags, files, ranks, resume, signals.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <chrono>
#include <cmath>
#include <map>
#include <set>
#include <thread>

#include "cli_harness.h"

namespace zi::test {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;
using testing::Not;

TEST(Cli, HelpAndVersionNeedNothingAndPrintOnce) {
  const Ended help = run_job(2, {"--help"});
  EXPECT_EQ(help.code, 0) << help.err;
  const auto first = help.out.find("--nvme-offload-path");
  ASSERT_NE(first, std::string::npos);
  EXPECT_EQ(help.out.find("--nvme-offload-path", first + 1), std::string::npos);
  const Ended version = run_job(0, {"--version"});
  EXPECT_EQ(version.code, 0);
  EXPECT_THAT(version.out, HasSubstr("zero-infer "));
}

TEST(Cli, SaysAtTheStartWhatTravelsAndAtTheEndWhatDidUnlessThatWasGiven) {
  const auto said = [](int ranks, std::vector<std::string> more) {
    more.insert(more.begin(), {"--model", model(), "--prompt", "In the beginning",
                               "--max-new-tokens", "3", "--ignore-eos"});
    const Ended ended = run_job(ranks, more);
    EXPECT_EQ(ended.code, 0) << ended.err;
    return ended.err;
  };
  EXPECT_THAT(said(2, {}), AllOf(HasSubstr("weights "), HasSubstr(" (measured in "),
                                 HasSubstr("weights stayed in ")));
  EXPECT_THAT(said(1, {}), Not(AnyOf(HasSubstr(" (measured in "), HasSubstr("weights stayed"))));
  EXPECT_THAT(said(2, {"--travel", "weights"}),
              Not(AnyOf(HasSubstr(" (measured in "), HasSubstr("weights stayed"))));
}

TEST(Cli, WritesTheDocumentedFieldsOfEveryPromptOnce) {
  const TemporaryFolder folder;
  write_file(folder / "in.jsonl", many_prompts(23, 12) + "{\"prompt_ids\":[3495,262],\"id\":7}\n");
  const Ended ended = run_job(
      2, {"--model", model(), "--prompts", folder / "in.jsonl", "--output", folder / "out.jsonl",
          "--batch-size", "3", "--logprobs", "2", "--travel", "weights"});
  ASSERT_EQ(ended.code, 0) << ended.err;
  EXPECT_THAT(ended.err, HasSubstr("tokens/s"));
  EXPECT_THAT(ended.err, HasSubstr("gathered from the other ranks"));
  const auto lines = json_lines(read_file(folder / "out.jsonl"));
  ASSERT_EQ(lines.size(), 24u);
  std::set<std::string> ids;
  std::set<int> ranks;
  for (const auto& line : lines) {
    ids.insert(line.at("id").dump());
    ranks.insert(line.at("rank").get<int>());
    const auto& tokens = line.at("token_ids");
    EXPECT_EQ(line.at("logprobs").size(), tokens.size());
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const auto& entry = line.at("logprobs")[i];
      EXPECT_EQ(entry.at("id"), tokens[i]);
      ASSERT_EQ(entry.at("top").size(), 2u);
      EXPECT_EQ(entry.at("top")[0][0], tokens[i]);  // greedy
      EXPECT_EQ(entry.at("top")[0][1], entry.at("logprob"));
      EXPECT_LE(entry.at("logprob").get<double>(), 0);
    }
    EXPECT_GT(line.at("prompt_tokens").get<int>(), 0);
    EXPECT_TRUE(line.at("text").is_string());
    EXPECT_EQ(line.at("finish_reason"), "length");
  }
  EXPECT_EQ(ids.size(), 24u);
  EXPECT_TRUE(ids.contains("7"));
  EXPECT_EQ(ranks, (std::set<int>{0, 1}));
}

TEST(Cli, SharesThePagesOfPromptsThatBeginAlikeUnlessToldNotTo) {
  const TemporaryFolder folder;
  std::string lines;
  for (int i = 0; i < 12; ++i) {
    lines +=
        "{\"prompt\":\"In the beginning God created the heaven and the earth. And the earth was "
        "without form, and void; and darkness was upon the face of the deep. And the number " +
        std::to_string(i) + "\",\"max_new_tokens\":5}\n";
  }
  write_file(folder / "in.jsonl", lines);
  const auto run = [&](const std::vector<std::string>& flags) {
    std::vector<std::string> arguments = {"--model",           model(),    "--prompts",
                                          folder / "in.jsonl", "--output", "-"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    Ended ended = run_job(0, arguments);
    EXPECT_EQ(ended.code, 0) << ended.err;
    return ended;
  };
  const Ended shared = run({});
  const Ended apart = run({"--no-prefix-sharing"});
  EXPECT_THAT(shared.err, HasSubstr(" more were taken from shared pages)"));
  EXPECT_THAT(apart.err, Not(HasSubstr("shared pages")));
  const auto by_id = [](const Ended& ended) {
    std::map<std::string, nlohmann::json> results;
    for (const auto& line : json_lines(ended.out)) results[line.at("id").dump()] = line;
    return results;
  };
  EXPECT_EQ(by_id(shared), by_id(apart));
  EXPECT_EQ(by_id(shared).size(), 12u);
}

TEST(Cli, ReadsPromptsFromAPipeAndWritesOnlyJsonToStandardOutput) {
  const Ended ended =
      run_job(2, {"--model", model(), "--prompts", "-", "--output", "-", "--max-new-tokens", "5"},
              many_prompts(5, 5));
  ASSERT_EQ(ended.code, 0) << ended.err;
  EXPECT_EQ(ids_of(json_lines(ended.out)), expected_ids(5));
}

TEST(Cli, GivesEqualLogprobsOnOneToFourRanks) {
  const TemporaryFolder folder;
  std::vector<std::vector<nlohmann::json>> runs;
  for (int ranks : {0, 2, 3, 4}) {
    const std::string out = folder / ("out" + std::to_string(ranks));
    const Ended ended =
        run_job(ranks, {"--model", model(), "--prompt", "In the beginning", "--prompt",
                        "For God so loved the world,", "--prompt", "Jesus wept.", "--output", out,
                        "--max-new-tokens", "24", "--logprobs", "5", "--compute-dtype", "float32",
                        "--quiet"});
    ASSERT_EQ(ended.code, 0) << ended.err;
    EXPECT_EQ(ended.err, "");
    auto lines = json_lines(read_file(out));
    std::ranges::sort(lines, {},
                      [](const auto& line) { return line.at("id").template get<int>(); });
    runs.push_back(std::move(lines));
  }
  for (std::size_t r = 1; r < runs.size(); ++r) {
    ASSERT_EQ(runs[r].size(), runs[0].size());
    for (std::size_t i = 0; i < runs[0].size(); ++i) {
      EXPECT_EQ(runs[r][i].at("token_ids"), runs[0][i].at("token_ids"));
      const auto& a = runs[r][i].at("logprobs");
      const auto& b = runs[0][i].at("logprobs");
      for (std::size_t t = 0; t < a.size(); ++t) {
        for (std::size_t k = 0; k < 5; ++k) {
          EXPECT_NEAR(a[t].at("top")[k][1].get<double>(), b[t].at("top")[k][1].get<double>(), 1e-3);
        }
      }
    }
  }
}

TEST(Cli, SampledTextDependsOnTheSeedAndNotOnTheBatchOrTheRanks) {
  const TemporaryFolder folder;
  const auto sample = [&](int ranks, const std::string& batch, const std::string& seed) {
    const std::string out = folder / "sampled";
    const Ended ended = run_job(ranks, {"--model",
                                        model(),
                                        "--prompt",
                                        "In the beginning",
                                        "--prompt",
                                        "Thou shalt not",
                                        "--prompt",
                                        "Jesus wept.",
                                        "--output",
                                        out,
                                        "--temperature",
                                        "1.5",
                                        "--top-k",
                                        "50",
                                        "--top-p",
                                        "0.95",
                                        "--repetition-penalty",
                                        "1.1",
                                        "--seed",
                                        seed,
                                        "--batch-size",
                                        batch,
                                        "--max-new-tokens",
                                        "20",
                                        "--compute-dtype",
                                        "float32"});
    EXPECT_EQ(ended.code, 0) << ended.err;
    std::map<std::string, nlohmann::json> tokens;
    for (const auto& line : json_lines(read_file(out))) {
      tokens[line.at("id").dump()] = line.at("token_ids");
    }
    return tokens;
  };
  const auto base = sample(0, "3", "1");
  EXPECT_EQ(base.size(), 3u);
  EXPECT_EQ(sample(0, "1", "1"), base);
  EXPECT_EQ(sample(2, "2", "1"), base);
  EXPECT_NE(sample(0, "3", "2"), base);
}

TEST(Cli, StopsAtAStopTextAndLeavesItOut) {
  const Ended ended = run_job(0, {"--model", model(), "--prompt", "In the beginning", "--stop",
                                  " Josiah", "--stop", "never", "--output", "-"});
  ASSERT_EQ(ended.code, 0) << ended.err;
  const auto line = json_lines(ended.out).at(0);
  EXPECT_EQ(line.at("finish_reason"), "stop");
  EXPECT_EQ(line.at("text"), " of the reign of Jehoiakim the son of");
}

TEST(Cli, ResumeRunsOnlyWhatIsMissingAndRepairsACutLine) {
  const TemporaryFolder folder;
  write_file(folder / "in.jsonl", many_prompts(20, 10));
  const std::vector<std::string> arguments = {"--model",           model(),    "--prompts",
                                              folder / "in.jsonl", "--output", folder / "out.jsonl",
                                              "--resume"};
  ASSERT_EQ(run_job(2, arguments).code, 0);
  const std::string whole = read_file(folder / "out.jsonl");
  write_file(folder / "out.jsonl", whole.substr(0, whole.size() / 2));  // in mid-line
  const std::size_t kept =
      json_lines(whole.substr(0, whole.rfind('\n', whole.size() / 2) + 1)).size();
  const Ended again = run_job(2, arguments);
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_THAT(again.err, HasSubstr(std::to_string(kept) + " finished sequences"));
  EXPECT_EQ(ids_of(json_lines(read_file(folder / "out.jsonl"))), expected_ids(20));
  EXPECT_EQ(run_job(1, arguments).code, 0);  // nothing left to do
  EXPECT_EQ(ids_of(json_lines(read_file(folder / "out.jsonl"))), expected_ids(20));
}

TEST(Cli, ShardFilesAreWrittenOnceAndReused) {
  const TemporaryFolder folder;
  const std::vector<std::string> arguments = {"--model",
                                              model(),
                                              "--prompt",
                                              "Jesus wept.",
                                              "--nvme-offload-path",
                                              folder / "nvme",
                                              "--max-new-tokens",
                                              "4"};
  const Ended first = run_job(2, arguments);
  ASSERT_EQ(first.code, 0) << first.err;
  EXPECT_THAT(first.err, HasSubstr("read from NVMe"));
  std::map<std::string, std::filesystem::file_time_type> times;
  for (const auto& e : std::filesystem::recursive_directory_iterator(folder / "nvme")) {
    if (e.path().extension() == ".shard") times[e.path()] = e.last_write_time();
  }
  EXPECT_EQ(times.size(), 2u);
  ASSERT_EQ(run_job(2, arguments).code, 0);
  for (const auto& [path, time] : times) EXPECT_EQ(std::filesystem::last_write_time(path), time);
  // The checkpoint changed: the old shard file must not be used.
  EXPECT_EQ(run_job(1, arguments).code, 0);
}

TEST(Cli, TokensThatTheModelHasNoRowsForAreRefused) {
  const TemporaryFolder folder;
  write_file(folder / "config.json",
             R"({"model_type":"bloom","hidden_size":96,"n_head":6,"n_layer":3,"vocab_size":64,
                 "layer_norm_epsilon":1e-5,"eos_token_id":2})");
  // Without a tokenizer.json each byte is a token: z is 122. One rank looks up on the device.
  for (int ranks : {0, 2}) {
    const Ended ended = run_job(
        ranks, {"--model", folder.path(), "--load-format", "dummy", "--prompt", "zzz", "--quiet"});
    EXPECT_NE(ended.code, 0);
    EXPECT_THAT(ended.err,
                HasSubstr("token id 122 (`z`) is out of range: the model has ids 0 to 63"));
  }
}

TEST(Cli, DummyWeightsAreTheSameOnAnyNumberOfRanks) {
  const TemporaryFolder folder;
  write_file(folder / "config.json",
             R"({"model_type":"bloom","hidden_size":96,"n_head":6,"n_layer":3,"vocab_size":300,
                 "layer_norm_epsilon":1e-5,"eos_token_id":2})");
  std::vector<nlohmann::json> tokens;
  for (int ranks : {0, 2, 3}) {
    const Ended ended =
        run_job(ranks, {"--model", folder.path(), "--load-format", "dummy", "--prompt", "abc",
                        "--output", "-", "--compute-dtype", "float32", "--ignore-eos", "--quiet"});
    ASSERT_EQ(ended.code, 0) << ended.err;
    tokens.push_back(json_lines(ended.out).at(0).at("token_ids"));
    EXPECT_EQ(tokens.back().size(), 100u);
  }
  EXPECT_EQ(tokens[0], tokens[1]);
  EXPECT_EQ(tokens[0], tokens[2]);
}

TEST(Cli, PutsTheTokenizersSpecialTokensAroundTextsUnlessToldNotTo) {
  const TemporaryFolder folder;
  const std::string copy = copy_of_model(folder);
  auto file = nlohmann::json::parse(read_file(copy + "/tokenizer.json"));
  file["post_processor"] = {{"type", "BertProcessing"}, {"cls", {"<s>", 1}}, {"sep", {"<pad>", 3}}};
  write_file(copy + "/tokenizer.json", file.dump());
  write_file(folder / "in.jsonl",
             "{\"prompt\": \"the LORD\"}\n{\"prompt_ids\": [1, 260, 72, 3]}\n"
             "{\"prompt_ids\": [260, 72]}\n");
  const auto scores = [&](const std::vector<std::string>& flags) {
    std::vector<std::string> arguments = {"--model",  copy, "--prompts", folder / "in.jsonl",
                                          "--output", "-",  "--score",   "--quiet"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    const Ended ended = run_job(0, arguments);
    EXPECT_EQ(ended.code, 0) << ended.err;
    std::map<std::string, std::pair<nlohmann::json, nlohmann::json>> by_id;
    for (const auto& line : json_lines(ended.out)) {
      by_id[line.at("id").dump()] = {line.at("prompt_tokens"), line.at("token_logprobs")};
    }
    return by_id;
  };
  const auto with = scores({});
  const auto without = scores({"--no-special-tokens"});
  ASSERT_EQ(with.size(), 3u);
  const std::string text = with.begin()->first;
  const int plain = without.at(text).first.get<int>();
  EXPECT_EQ(with.at(text).first, plain + 2);
  // Ids are taken as they are.
  for (auto it = std::next(with.begin()); it != with.end(); ++it) {
    EXPECT_EQ(it->second, without.at(it->first));
  }
}

class StopSignal : public testing::TestWithParam<int> {};

TEST_P(StopSignal, EndsCleanlyWithFinishedSequencesKept) {
  const TemporaryFolder folder;
  write_file(folder / "in.jsonl", many_prompts(5000, 40));
  Job job(0,
          {"--model", model(), "--prompts", folder / "in.jsonl", "--output", folder / "out.jsonl"});
  for (int i = 0; i < 4000 && read_file(folder / "out.jsonl").size() < 2000; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  job.signal(GetParam());
  const Ended ended = job.wait(20);
  EXPECT_EQ(ended.code, 128 + GetParam()) << ended.err;
  EXPECT_THAT(ended.err, HasSubstr("--resume"));
  const auto lines = json_lines(read_file(folder / "out.jsonl"));
  EXPECT_GT(lines.size(), 5u);
  EXPECT_LT(lines.size(), 5000u);
}

INSTANTIATE_TEST_SUITE_P(Each, StopSignal, testing::Values(SIGINT, SIGTERM, SIGHUP));

}  // namespace
}  // namespace zi::test
