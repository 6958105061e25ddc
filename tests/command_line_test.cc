#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "config/foreign_names.h"
#include "tests/config_refusal.h"
#include "zero_infer/run_config.h"

namespace zi {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

/// The configuration of a command line that already has a model and a prompt.
RunConfig with(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"--model", "m", "--prompt", "p"});
  return parse(arguments).config;
}

std::string refusal_with(std::vector<std::string> arguments) {
  return refusal([&] { with(arguments); });
}

TEST(CommandLine, ReadsEveryFlag) {
  const RunConfig config = parse({"--model=m",
                                  "--load-format",
                                  "dummy",
                                  "--prompt",
                                  "p",
                                  "--output",
                                  "o.jsonl",
                                  "--max-new-tokens",
                                  "7",
                                  "--batch-size",
                                  "1,8,16",
                                  "--max-pass-tokens",
                                  "99",
                                  "--temperature",
                                  "0.5",
                                  "--top-k",
                                  "40",
                                  "--top-p",
                                  "0.9",
                                  "--repetition-penalty",
                                  "1.2",
                                  "--seed",
                                  "11",
                                  "--stop",
                                  "a",
                                  "--stop",
                                  "-b",
                                  "--ignore-eos",
                                  "--no-special-tokens",
                                  "--no-prefix-sharing",
                                  "--logprobs",
                                  "5",
                                  "--compute-dtype",
                                  "fp16",
                                  "--backend",
                                  "cuda",
                                  "--replicated-blocks",
                                  "12",
                                  "--partition-within",
                                  "host",
                                  "--network",
                                  "200Gbit/s",
                                  "--cpu-offload",
                                  "--cpu-share",
                                  "auto",
                                  "--nvme-offload-path",
                                  "/nvme",
                                  "--gpu-weight-budget",
                                  "24GiB",
                                  "--cpu-weight-budget",
                                  "1GB",
                                  "--kv-budget",
                                  "2MiB",
                                  "--host-timeout",
                                  "90",
                                  "--benchmark",
                                  "--quiet"})
                               .config;
  EXPECT_EQ(config.model, "m");
  EXPECT_EQ(config.load_format, LoadFormat::kDummy);
  EXPECT_THAT(config.prompt, ElementsAre("p"));
  EXPECT_EQ(parse({"--model", "m", "--prompts", "-"}).config.prompts, "-");
  EXPECT_EQ(config.output, "o.jsonl");
  EXPECT_EQ(config.max_new_tokens, 7);
  EXPECT_THAT(config.batch_size, ElementsAre(1, 8, 16));
  EXPECT_EQ(config.max_pass_tokens, 99);
  EXPECT_EQ(config.temperature, 0.5);
  EXPECT_EQ(config.top_k, 40);
  EXPECT_EQ(config.top_p, 0.9);
  EXPECT_EQ(config.repetition_penalty, 1.2);
  EXPECT_EQ(config.seed, 11u);
  EXPECT_THAT(config.stop, ElementsAre("a", "-b"));
  EXPECT_TRUE(config.ignore_eos);
  EXPECT_TRUE(config.no_special_tokens);
  EXPECT_TRUE(config.no_prefix_sharing);
  EXPECT_EQ(config.logprobs, 5);
  EXPECT_EQ(config.compute_dtype, DType::kFloat16);
  EXPECT_EQ(config.backend, BackendChoice::kCuda);
  EXPECT_EQ(config.replicated_blocks, 12);
  EXPECT_EQ(parse({"--model", "m", "--prompt", "p", "--replicated-blocks", "auto"})
                .config.replicated_blocks,
            std::nullopt);
  EXPECT_EQ(parse({"--model", "m", "--prompt", "p"}).config.replicated_blocks, 0);
  EXPECT_EQ(config.partition_within, PartitionWithin::kHost);
  EXPECT_EQ(config.network, 25e9);
  EXPECT_TRUE(config.cpu_offload);
  EXPECT_EQ(config.cpu_share, std::nullopt);
  EXPECT_EQ(parse({"--model", "m", "--prompt", "p"}).config.cpu_share, 0.0);
  EXPECT_EQ(config.nvme_offload_path, "/nvme");
  EXPECT_EQ(config.gpu_weight_budget, std::size_t{24} << 30);
  EXPECT_EQ(config.cpu_weight_budget, 1000000000u);
  EXPECT_EQ(config.kv_budget, std::size_t{2} << 20);
  EXPECT_EQ(config.host_timeout, 90);
  EXPECT_EQ(parse({"--model", "m", "--prompt", "p"}).config.host_timeout, 15);
  EXPECT_TRUE(config.benchmark);
  EXPECT_TRUE(config.quiet);
  EXPECT_FALSE(config.verbose);
  EXPECT_TRUE(parse({"--model", "m", "--prompt", "p", "--score", "--verbose"}).config.score);
}

TEST(CommandLine, RefusesWhatIsNoRateOfANetworkAndNoPartition) {
  for (const char* rate : {"0", "0GB/s", "abc", "25GB", "-1GB/s", ""}) {
    EXPECT_THAT(refusal_with({"--network", rate}),
                AllOf(HasSubstr("--network"), HasSubstr("25GB/s")));
  }
  EXPECT_THAT(refusal_with({"--partition-within", "rack"}), HasSubstr("job|host"));
}

TEST(CommandLine, TakesPromptTextsAsTheyAre) {
  const std::vector<std::string> texts = {"[a,b]",      "[[a,b]]", "a, b",     "\"quoted\"",
                                          "%% 'x' \\n", "- dash",  "--x y",    "{}",
                                          "two\nlines", "",        "h\xc3\xa9"};
  std::vector<std::string> arguments = {"--model", "m"};
  for (const std::string& text : texts) arguments.insert(arguments.end(), {"--prompt", text});
  EXPECT_EQ(parse(arguments).config.prompt, texts);
}

TEST(CommandLine, ShowsEveryFlagWithItsDefaultUnderItsGroup) {
  const CommandLine line = parse({"--help"});
  EXPECT_TRUE(line.exit_now);
  std::size_t last = 0;
  for (const char* group : {"\nModel:", "\nPrompts:", "\nGeneration:", "\nSampling:",
                            "\nMemory and offload:", "\nOutput:", "\nOther:"}) {
    const std::size_t at = line.text.find(group);
    ASSERT_NE(at, std::string::npos) << group;
    EXPECT_GT(at, last) << group;
    last = at;
  }
  for (const char* flag : {"--config",
                           "--model",
                           "--load-format",
                           "--prompt ",
                           "--prompts",
                           "--no-special-tokens",
                           "--no-prefix-sharing",
                           "--output",
                           "--resume",
                           "--max-new-tokens",
                           "--batch-size",
                           "--max-pass-tokens",
                           "--temperature",
                           "--top-k",
                           "--top-p",
                           "--repetition-penalty",
                           "--seed",
                           "--stop",
                           "--ignore-eos",
                           "--logprobs",
                           "--compute-dtype",
                           "--score",
                           "--backend",
                           "--replicated-blocks",
                           "--cpu-offload",
                           "--cpu-share",
                           "--nvme-offload-path",
                           "--gpu-weight-budget",
                           "--cpu-weight-budget",
                           "--kv-budget",
                           "--host-timeout",
                           "--benchmark",
                           "--quiet",
                           "--verbose",
                           "--version",
                           "--help",
                           "(default: 100)"}) {
    EXPECT_THAT(line.text, HasSubstr(flag));
  }
}

TEST(CommandLine, ShowsTheVersion) {
  const CommandLine line = parse({"--version"});
  EXPECT_TRUE(line.exit_now);
  EXPECT_EQ(line.text, "zero-infer " ZI_VERSION "\n");
}

TEST(CommandLine, RefusesWhatItDoesNotKnow) {
  EXPECT_EQ(refusal_with({"--batchsize", "4"}),
            "unknown flag `--batchsize`; did you mean `--batch-size`?");
  EXPECT_EQ(refusal_with({"--batch_size=4"}),
            "unknown flag `--batch_size`; did you mean `--batch-size`?");
  EXPECT_EQ(refusal_with({"--colour"}), "unknown flag `--colour`; see --help");
  EXPECT_THAT(refusal_with({"-x"}), StartsWith("unknown flag `-x`"));
  EXPECT_THAT(refusal_with({"--prompt", "two", "words"}),
              StartsWith("unexpected argument `words`"));
}

TEST(CommandLine, SaysWhatToDoInPlaceOfFlagsOfOtherPrograms) {
  EXPECT_THAT(
      refusal_with({"--tensor-parallel-size", "2"}),
      StartsWith("unknown flag `--tensor-parallel-size`; the weights are cut over the ranks "
                 "of the job: mpirun -np N"));
  EXPECT_THAT(refusal_with({"--gpu-memory-utilization=0.9"}), HasSubstr("--gpu-weight-budget"));
  EXPECT_THAT(refusal_with({"--max-model-len", "9"}),
              HasSubstr("; zero-infer's flag for that is `--kv-budget`: it is a size"));
  EXPECT_EQ(refusal_with({"--max-num-seqs", "4"}),
            "unknown flag `--max-num-seqs`; zero-infer's flag for that is `--batch-size`");
  EXPECT_EQ(refusal_with({"--max_num_seqs", "4"}),
            "unknown flag `--max_num_seqs`; zero-infer's flag for that is `--batch-size`");
  EXPECT_THAT(refusal_with({"-ngl", "99"}), HasSubstr("is `--gpu-weight-budget`"));
  EXPECT_THAT(refusal_with({"--ctx-size", "9"}), HasSubstr("is `--kv-budget`"));
  EXPECT_THAT(refusal_with({"--dtype", "float16"}), HasSubstr("is `--compute-dtype`"));
  EXPECT_THAT(refusal_with({"--num_gpus", "8"}), HasSubstr("mpirun -np N"));
}

TEST(CommandLine, EveryAdviceNamesFlagsThatThereAre) {
  std::set<std::string> known;
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{"--help"}, {"serve", "--help"}}) {
    std::istringstream words(parse(command).text);
    for (std::string word; words >> word;) known.insert(word);
  }
  for (const char* name : {"tp",
                           "gpu-memory-utilization",
                           "max-model-len",
                           "max-num-seqs",
                           "max-num-batched-tokens",
                           "dtype",
                           "quantization",
                           "cpu-offload-gb",
                           "swap-space",
                           "enable-prefix-caching",
                           "no-enable-prefix-caching",
                           "max-tokens",
                           "download-dir",
                           "ssl-certfile",
                           "ssl-keyfile",
                           "allowed-origins",
                           "ngl",
                           "n",
                           "f",
                           "np",
                           "s",
                           "temp",
                           "repeat-penalty",
                           "mlock",
                           "reverse-prompt",
                           "ds-config",
                           "disk-offload",
                           "quant-bits",
                           "device",
                           "do-sample"}) {
    EXPECT_FALSE(known.contains(std::string("--") + name)) << name << " is one of ours";
    std::istringstream words(foreign_name_advice(name, NameStyle::kFlag));
    std::string word;
    ASSERT_TRUE(words >> word) << name;
    for (; words >> word;) {
      std::erase_if(word, [](char c) { return c == '`' || c == ':' || c == ',' || c == ';'; });
      if (!word.starts_with("--")) continue;
      EXPECT_TRUE(known.contains(word)) << name << ": " << word;
    }
  }
}

TEST(CommandLine, RefusesAWordThatIsNoCommand) {
  const auto refused = [](const std::vector<std::string>& words) {
    return refusal([&] { parse(words); });
  };
  EXPECT_EQ(refused({"sever", "--model", "m"}), "unknown command `sever`; did you mean `serve`?");
  EXPECT_THAT(refused({"run", "--model", "m"}), HasSubstr("a run has no command: zero-infer"));
  EXPECT_THAT(refused({"benchmark"}), HasSubstr("the commands are serve, chat, plan, limits"));
}

TEST(CommandLine, RefusesAMalformedOrMissingValue) {
  EXPECT_EQ(refusal_with({"--seed", "x"}),
            "--seed: `x` is not a whole number from 0 to 18446744073709551615");
  EXPECT_EQ(refusal_with({"--temperature", "-1"}),
            "--temperature: must be 0, or from 1e-30 to 1e30, not -1");
  EXPECT_EQ(refusal_with({"--resume=maybe"}), "--resume: `maybe` is neither true nor false");
  EXPECT_THAT(refusal_with({"--seed"}), StartsWith("--seed: needs a value"));
  EXPECT_THAT(refusal_with({"--kv-budget", "3\nQ"}), StartsWith("--kv-budget: `3 Q` is not"));
  for (const char* const share : {"1.01", "-0.1", "nan", "inf"}) {
    EXPECT_THAT(refusal_with({"--cpu-share", share}), HasSubstr("must be from 0 to 1")) << share;
  }
  EXPECT_THAT(refusal_with({"--cpu-share", "some"}), HasSubstr("not auto or a number"));
  for (const char* blocks : {"some", "-1", "1.5", ""}) {
    EXPECT_THAT(refusal_with({"--replicated-blocks", blocks}), HasSubstr("--replicated-blocks"));
  }
}

TEST(CommandLine, RefusesARepeatedFlagThatIsNoList) {
  EXPECT_EQ(refusal_with({"--seed", "1", "--seed", "1"}), "--seed: given 2 times; give it once");
  EXPECT_EQ(refusal_with({"--quiet", "--quiet"}), "--quiet: given 2 times; give it once");
  EXPECT_THAT(refusal_with({"--batch-size", "1", "--batch-size", "2"}), HasSubstr("2 times"));
  EXPECT_EQ(refusal([] {
              parse({"--config", "a", "--config", "b"});
            }),
            "--config: given 2 times; give it once");
}

TEST(Check, RefusesRangesWithTheValueInTheMessage) {
  const std::vector<std::pair<std::string, std::vector<std::string>>> wrong = {
      {"--temperature", {"-0.5", "nan", "inf"}}, {"--top-p", {"0", "-1", "1.01", "nan"}},
      {"--top-k", {"-1", "1000000001"}},         {"--repetition-penalty", {"0", "-2", "inf"}},
      {"--max-new-tokens", {"0", "-5"}},         {"--max-pass-tokens", {"-5"}},
      {"--batch-size", {"0", "8,-1"}},           {"--logprobs", {"-1", "101"}},
  };
  for (const auto& [flag, values] : wrong) {
    for (const std::string& value : values) {
      const std::string last = value.substr(value.rfind(',') + 1);
      EXPECT_THAT(refusal_with({flag, value}),
                  AllOf(StartsWith(flag + ": must be "), HasSubstr("not " + last)));
    }
  }
}

TEST(Check, TakesTheEndsOfTheRanges) {
  EXPECT_EQ(with({"--temperature", "0"}).temperature, 0);
  EXPECT_EQ(with({"--top-p", "1"}).top_p, 1);
  EXPECT_EQ(with({"--logprobs", "100", "--output", "-"}).logprobs, 100);
  EXPECT_EQ(with({"--max-new-tokens", "1"}).max_new_tokens, 1);
  EXPECT_EQ(with({"--batch-size", "512"}).max_pass_tokens, 0);
  EXPECT_EQ(with({"--batch-size", "512", "--max-pass-tokens", "512"}).max_pass_tokens, 512);
}

TEST(Check, HoldsForAConfigurationThatNoParserMade) {
  RunConfig config;
  config.model = "m";
  config.prompt = {"p"};
  EXPECT_NO_THROW(check(config));
  config.top_p = 2;
  EXPECT_EQ(refusal([&] { check(config); }), "top_p: must be from 1e-30 to 1, not 2");
  config.top_p = 1;
  config.batch_size = {};
  EXPECT_THAT(refusal([&] { check(config); }), StartsWith("batch_size: "));
  config.batch_size = {1};
  config.quiet = config.verbose = true;
  EXPECT_THAT(refusal([&] { check(config); }), HasSubstr("quiet and verbose exclude"));
}

TEST(Check, RefusesSamplingThatFloat32CannotCompute) {
  for (const char* const flag : {"--temperature", "--top-p", "--repetition-penalty"}) {
    for (const char* const value : {"1e-50", "1e-40", "1e39", "nan", "inf", "-1"}) {
      EXPECT_THAT(refusal_with({flag, value}), HasSubstr(flag)) << value;
    }
    EXPECT_NO_THROW(with({flag, "1e-30"})) << flag;
  }
  EXPECT_NO_THROW(with({"--temperature", "0"}));
}

TEST(Check, RefusesAPassThatIsSmallerThanTheBatch) {
  EXPECT_THAT(refusal_with({"--batch-size", "600", "--max-pass-tokens", "512"}),
              AllOf(HasSubstr("--max-pass-tokens 512"), HasSubstr("--batch-size 600")));
  EXPECT_THAT(refusal_with({"--batch-size", "1,32,4", "--max-pass-tokens", "31", "--benchmark"}),
              AllOf(HasSubstr("31"), HasSubstr("32")));
}

TEST(Check, AsksForAModel) {
  EXPECT_THAT(refusal([] { parse({"--prompt", "p"}); }), HasSubstr("no model: give --model"));
  EXPECT_THAT(refusal([] {
                parse({"--model", "", "--prompt", "p"});
              }),
              HasSubstr("must not be empty"));
}

TEST(Check, AsksForPromptsUnlessItMeasures) {
  EXPECT_THAT(refusal([] {
                parse({"--model", "m"});
              }),
              AllOf(HasSubstr("no prompts: give --prompt TEXT"), HasSubstr("--prompts FILE")));
  EXPECT_TRUE(parse({"--model", "m", "--benchmark"}).config.benchmark);
  EXPECT_THAT(refusal_with({"--prompts", "p.jsonl"}), HasSubstr("exclude each other"));
  EXPECT_THAT(refusal_with({"--prompts", "p.jsonl", "--benchmark"}),
              HasSubstr("exclude each other"));
}

TEST(Check, RefusesCombinationsThatCannotWork) {
  EXPECT_THAT(refusal_with({"--benchmark", "--resume", "--output", "o"}),
              HasSubstr("--resume has no meaning"));
  EXPECT_THAT(refusal_with({"--trace", "-"}), HasSubstr("--trace FILE.json"));
  EXPECT_THAT(refusal_with({"--resume"}), HasSubstr("--resume needs --output"));
  EXPECT_THAT(refusal_with({"--resume", "--output", "-"}), HasSubstr("--resume needs --output"));
  EXPECT_TRUE(with({"--resume", "--output", "o"}).resume);
  EXPECT_THAT(refusal_with({"--batch-size", "1,8"}),
              AllOf(HasSubstr("1,8"), HasSubstr("--benchmark")));
  EXPECT_TRUE(with({"--chat"}).chat);
  EXPECT_THAT(refusal_with({"--chat", "--benchmark"}), HasSubstr("--chat has no meaning"));
  EXPECT_THAT(refusal_with({"--score", "--benchmark"}), HasSubstr("--score and --benchmark"));
  EXPECT_THAT(refusal_with({"--score", "--stop", "x"}), HasSubstr("--stop"));
  EXPECT_THAT(refusal_with({"--quiet", "--verbose"}), HasSubstr("exclude each other"));
  EXPECT_THAT(refusal_with({"--stop", ""}), HasSubstr("must not be empty"));
  EXPECT_THAT(refusal_with({"--nvme-offload-path", ""}), HasSubstr("must not be empty"));
}

}  // namespace
}  // namespace zi
