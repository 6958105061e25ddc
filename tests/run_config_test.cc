#include "zero_infer/run_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "tests/config_refusal.h"

namespace zi {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

/// A folder of its own for each test.
class Yaml : public testing::Test {
 protected:
  Yaml() {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::path(testing::TempDir()) /
              ("zi_config_" + std::to_string(getpid()) + "_" + test->name());
    std::filesystem::create_directories(folder_);
  }
  ~Yaml() override { std::filesystem::remove_all(folder_); }

  std::string write(std::string_view content) const {
    const std::filesystem::path path = folder_ / "run.yaml";
    std::ofstream(path) << content;
    return path.string();
  }
  RunConfig load(std::string_view content) const { return load_run_config(write(content)); }
  /// What is said about `content`, without the folder.
  std::string refusal_of(std::string_view content) const {
    const std::string message = refusal([&] { load(content); });
    const std::string prefix = folder_.string() + "/";
    return message.starts_with(prefix) ? message.substr(prefix.size()) : message;
  }

  std::filesystem::path folder_;
};

TEST_F(Yaml, ReadsEveryKey) {
  const RunConfig config = load(R"(
model: bigscience/bloom
load_format: dummy
prompt: [one, "two: three"]
output: out.jsonl
no_special_tokens: true
no_prefix_sharing: true
resume: true
max_new_tokens: 7
batch_size: 3
max_pass_tokens: 99
temperature: 0.5
top_k: 40
top_p: 0.9
repetition_penalty: 1.2
seed: 18446744073709551615
stop: END
ignore_eos: true
logprobs: 5
compute_dtype: float32
weight_format: int4
head_format: int8
score: true
backend: cpu
cpu_offload: true
cpu_share: 0.25
replicated_blocks: 7
nvme_offload_path: /nvme
gpu_weight_budget: 24GiB
cpu_weight_budget: 1.5GB
kv_budget: 0
host_timeout: 90
benchmark: true
verbose: true
)");
  EXPECT_EQ(config.model, "bigscience/bloom");
  EXPECT_EQ(config.load_format, LoadFormat::kDummy);
  EXPECT_THAT(config.prompt, ElementsAre("one", "two: three"));
  EXPECT_EQ(config.output, "out.jsonl");
  EXPECT_TRUE(config.no_special_tokens);
  EXPECT_TRUE(config.no_prefix_sharing);
  EXPECT_TRUE(config.resume);
  EXPECT_EQ(config.max_new_tokens, 7);
  EXPECT_THAT(config.batch_size, ElementsAre(3));
  EXPECT_EQ(config.max_pass_tokens, 99);
  EXPECT_EQ(config.temperature, 0.5);
  EXPECT_EQ(config.top_k, 40);
  EXPECT_EQ(config.top_p, 0.9);
  EXPECT_EQ(config.repetition_penalty, 1.2);
  EXPECT_EQ(config.seed, std::numeric_limits<std::uint64_t>::max());
  EXPECT_THAT(config.stop, ElementsAre("END"));
  EXPECT_TRUE(config.ignore_eos);
  EXPECT_EQ(config.logprobs, 5);
  EXPECT_EQ(config.compute_dtype, DType::kFloat32);
  EXPECT_EQ(config.weight_format, WeightChoice::kInt4);
  EXPECT_EQ(config.head_format, WeightChoice::kInt8);
  EXPECT_TRUE(config.score);
  EXPECT_EQ(config.backend, BackendChoice::kCpu);
  EXPECT_TRUE(config.cpu_offload);
  EXPECT_EQ(config.cpu_share, 0.25);
  EXPECT_EQ(config.replicated_blocks, 7);
  EXPECT_EQ(config.nvme_offload_path, "/nvme");
  EXPECT_EQ(config.gpu_weight_budget, std::size_t{24} << 30);
  EXPECT_EQ(config.cpu_weight_budget, 1500000000u);
  EXPECT_EQ(config.kv_budget, 0u);
  EXPECT_EQ(config.host_timeout, 90);
  EXPECT_TRUE(config.benchmark);
  EXPECT_FALSE(config.quiet);
  EXPECT_TRUE(config.verbose);
}

TEST_F(Yaml, LeavesTheDefaultsOfKeysThatAreNotThere) {
  RunConfig defaults;
  defaults.seed = 3;
  defaults.top_k = 4;
  const RunConfig config = load_run_config(write("seed: 5\n"), defaults);
  EXPECT_EQ(config.seed, 5u);
  EXPECT_EQ(config.top_k, 4);
  EXPECT_EQ(config.max_new_tokens, RunConfig().max_new_tokens);
}

TEST_F(Yaml, NamesAnUnknownKeyWithItsLineAndTheNearestKey) {
  EXPECT_EQ(refusal_of("model: m\n\nbatchsize: 4\n"),
            "run.yaml:3: unknown key `batchsize`; did you mean `batch_size`?");
  EXPECT_EQ(refusal_of("max-new-tokens: 4\n"),
            "run.yaml:1: unknown key `max-new-tokens`; did you mean `max_new_tokens`?");
  EXPECT_EQ(refusal_of("colour: red\n"), "run.yaml:1: unknown key `colour`");
  EXPECT_EQ(refusal_of("max_num_seqs: 8\n"),
            "run.yaml:1: unknown key `max_num_seqs`; zero-infer's key for that is `batch_size`");
  EXPECT_THAT(refusal_of("model: m\n[a, b]: 1\n"), StartsWith("run.yaml:2: "));
}

TEST_F(Yaml, NamesARepeatedKeyWithBothLines) {
  EXPECT_EQ(refusal_of("seed: 1\nmodel: m\nseed: 1\n"),
            "run.yaml:3: key `seed` is repeated; line 1 has it already");
}

TEST_F(Yaml, NamesTheLineOfAValueOfTheWrongType) {
  EXPECT_EQ(refusal_of("model: m\nmax_new_tokens: many\n"),
            "run.yaml:2: max_new_tokens: `many` is not a whole number");
  EXPECT_EQ(refusal_of("max_new_tokens: 1.5"),
            "run.yaml:1: max_new_tokens: `1.5` is not a whole number");
  EXPECT_EQ(refusal_of("top_p: 0.5x"), "run.yaml:1: top_p: `0.5x` is not a number");
  EXPECT_EQ(refusal_of("resume: 1"), "run.yaml:1: resume: `1` is neither true nor false");
  EXPECT_EQ(refusal_of("backend: gpu"), "run.yaml:1: backend: `gpu` is not one of auto|cpu|cuda");
  EXPECT_EQ(refusal_of("weight_format: fp8"),
            "run.yaml:1: weight_format: `fp8` is not one of stored|int8|int4");
  EXPECT_THAT(refusal_of("kv_budget: lots"), StartsWith("run.yaml:1: kv_budget: `lots` is not"));
  EXPECT_THAT(refusal_of("compute_dtype: int8"), StartsWith("run.yaml:1: compute_dtype: `int8`"));
  EXPECT_THAT(refusal_of("seed: -1"), StartsWith("run.yaml:1: seed: `-1` is not a whole number"));
  EXPECT_THAT(refusal_of("top_k: 99999999999999999999"), HasSubstr("is out of range"));
}

TEST_F(Yaml, NamesTheLineOfAValueOfTheWrongShape) {
  EXPECT_EQ(refusal_of("seed: 1\nmodel: [a, b]\n"),
            "run.yaml:2: model: must be one value, not a list");
  EXPECT_THAT(refusal_of("seed: {a: 1}"), StartsWith("run.yaml:1: seed: must be one value"));
  EXPECT_THAT(refusal_of("seed: 1\noutput:\n\ntop_k: 1\n"),
              StartsWith("run.yaml:2: output: has no value"));
  EXPECT_THAT(refusal_of("prompt:\n  - fine\n  - He said: go\n"),
              AllOf(StartsWith("run.yaml:3: prompt: "), HasSubstr("needs quotes")));
  EXPECT_THAT(refusal_of("prompt:\n  - fine\n  -\n"), HasSubstr("prompt: has no value"));
  EXPECT_THAT(refusal_of("prompt:\n  - [nested]\n"), StartsWith("run.yaml:2: prompt: must be one"));
}

TEST_F(Yaml, NamesTheLineOfAValueOutOfRange) {
  EXPECT_EQ(refusal_of("model: m\ntop_p: 1.5\n"),
            "run.yaml:2: top_p: must be from 1e-30 to 1, not 1.5");
  EXPECT_THAT(refusal_of("\nbatch_size: [1,\n  0]\n"),
              AllOf(StartsWith("run.yaml:2: batch_size: must be from 1"), HasSubstr("not 0")));
}

TEST_F(Yaml, NamesTheLineOfASyntaxError) {
  EXPECT_THAT(refusal_of("model: m\nstop: [a\n"), StartsWith("run.yaml:"));
  EXPECT_THAT(refusal_of("model: m\n  seed: 1\n"), StartsWith("run.yaml:2: "));
  EXPECT_THAT(refusal_of("seed: *nowhere\n"), StartsWith("run.yaml:1: "));
}

TEST_F(Yaml, RefusesAFileThatIsNoSingleMap) {
  for (const char* content : {"", "# nothing\n", "- a\n- b\n", "just text\n"}) {
    EXPECT_THAT(refusal_of(content), HasSubstr("not a YAML map")) << content;
  }
  EXPECT_THAT(refusal_of("seed: 1\n---\nmodel: m\n"), HasSubstr("second YAML document"));
}

TEST_F(Yaml, RefusesAFileThatCannotBeRead) {
  EXPECT_THAT(refusal([&] { load_run_config(folder_ / "missing.yaml"); }),
              AllOf(HasSubstr("missing.yaml"), HasSubstr("No such file")));
  EXPECT_THAT(refusal([&] { load_run_config(folder_); }), HasSubstr("is a directory"));
}

TEST_F(Yaml, TakesAScalarAsAListOfOneAndBatchSizesInEachForm) {
  EXPECT_THAT(load("prompt: one").prompt, ElementsAre("one"));
  EXPECT_THAT(load("prompt: 17").prompt, ElementsAre("17"));
  EXPECT_THAT(load("stop: [a, b]").stop, ElementsAre("a", "b"));
  EXPECT_THAT(load("batch_size: 4").batch_size, ElementsAre(4));
  EXPECT_THAT(load("batch_size: 1,8, 16").batch_size, ElementsAre(1, 8, 16));
  EXPECT_THAT(load("batch_size: [1, 8, 16]").batch_size, ElementsAre(1, 8, 16));
  EXPECT_THAT(refusal_of("batch_size: []"), StartsWith("run.yaml:1: batch_size: "));
  EXPECT_THAT(refusal_of("batch_size: 1,,2"), StartsWith("run.yaml:1: batch_size: "));
}

TEST_F(Yaml, CountsDottedInputPathsFromItsFolder) {
  const RunConfig config = load("model: ../models/m\nprompts: ./p.jsonl\noutput: ./out.jsonl\n");
  EXPECT_EQ(config.model, (folder_ / "../models/m").string());
  EXPECT_EQ(config.prompts, (folder_ / "./p.jsonl").string());
  EXPECT_EQ(config.output, "./out.jsonl");
  const RunConfig plain = load("model: bigscience/bloom\nprompts: dir/p.jsonl\n");
  EXPECT_EQ(plain.model, "bigscience/bloom");
  EXPECT_EQ(plain.prompts, "dir/p.jsonl");
  EXPECT_EQ(load("prompts: '-'").prompts, "-");
  EXPECT_EQ(load("model: /abs/./m").model, "/abs/./m");
  EXPECT_EQ(load("model: .hidden/m").model, ".hidden/m");
}

TEST_F(Yaml, RefusesTwoSourcesOfPromptsEvenIfAFlagWouldReplaceThem) {
  const std::string both = write("model: m\nprompt: a\nprompts: b.jsonl\n");
  const std::string message = refusal([&] { parse({"--config", both, "--prompt", "c"}); });
  EXPECT_THAT(message, AllOf(HasSubstr("run.yaml:2"), HasSubstr("prompt and prompts exclude")));
}

TEST_F(Yaml, GivesWayToFlags) {
  const std::string yaml =
      write("model: ./m\nprompt: [a, b]\nstop: [x, y]\nseed: 1\nresume: true\n");
  const RunConfig config = parse({"--seed", "2", "--config", yaml, "--prompt", "c", "--stop=z",
                                  "--resume=false", "--top-k", "9"})
                               .config;
  EXPECT_EQ(config.seed, 2u);
  EXPECT_THAT(config.prompt, ElementsAre("c"));
  EXPECT_THAT(config.stop, ElementsAre("z"));
  EXPECT_FALSE(config.resume);
  EXPECT_EQ(config.top_k, 9);
  EXPECT_EQ(config.model, (folder_ / "./m").string());
}

TEST_F(Yaml, LosesItsPromptsToEitherFlagForPrompts) {
  const std::string texts = write("model: m\nprompt: [a, b]\n");
  const RunConfig file = parse({"--config", texts, "--prompts", "p.jsonl"}).config;
  EXPECT_THAT(file.prompt, IsEmpty());
  EXPECT_EQ(file.prompts, "p.jsonl");
  const std::string jsonl = write("model: m\nprompts: p.jsonl\n");
  const RunConfig text = parse({"--config", jsonl, "--prompt", "c"}).config;
  EXPECT_THAT(text.prompt, ElementsAre("c"));
  EXPECT_FALSE(text.prompts);
}

TEST_F(Yaml, LosesVerboseToTheFlagQuiet) {
  const std::string yaml = write("model: m\nprompt: a\nverbose: true\n");
  const RunConfig config = parse({"--config", yaml, "--quiet"}).config;
  EXPECT_TRUE(config.quiet);
  EXPECT_FALSE(config.verbose);
  EXPECT_THAT(refusal_of("quiet: true\nverbose: true\n"), HasSubstr("exclude each other"));
}

TEST(ShippedConfig, OfEachNameLoadsAndPassesTheCheck) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(ZI_SOURCE_DIR "/config")) {
    if (entry.path().extension() != ".yaml") continue;
    names.push_back(entry.path().filename());
    EXPECT_NO_THROW(check(load_run_config(entry.path()))) << entry.path();
  }
  EXPECT_THAT(names, testing::UnorderedElementsAre("demo.yaml", "bloom.yaml", "bloom-7b1.yaml",
                                                   "bloom-560m.yaml"));
}

TEST(ShippedConfig, OfTheDemoFindsTheBundledModelAndExplainsEveryKey) {
  const std::string path = ZI_SOURCE_DIR "/config/demo.yaml";
  const RunConfig config = load_run_config(path);
  EXPECT_TRUE(std::filesystem::exists(std::filesystem::path(config.model) / "config.json"));
  EXPECT_THAT(config.prompt, testing::SizeIs(5));
  std::ifstream file(path);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  // The keys are the flags that --help shows.
  const std::string help = parse({"--help"}).text;
  int keys = 0;
  for (std::size_t at = help.find("  --"); at != std::string::npos;
       at = help.find("  --", at + 1)) {
    std::string key = help.substr(at + 4, help.find_first_of(" \n", at + 4) - at - 4);
    if (key == "config" || key == "version") continue;
    for (char& c : key) c = c == '-' ? '_' : c;
    EXPECT_TRUE(text.find("\n" + key + ":") != std::string::npos ||
                text.find("\n#" + key + ":") != std::string::npos)
        << key;
    ++keys;
  }
  EXPECT_GE(keys, 27);
}

TEST(ShippedConfig, OfTheShapesGivesThePublishedSizes) {
  const std::map<std::string, double> bytes = {{"bloom-560m", 1.118e9}, {"bloom-1b1", 2.131e9},
                                               {"bloom-1b7", 3.445e9},  {"bloom-3b", 6.005e9},
                                               {"bloom-7b1", 14.138e9}, {"bloom-176b", 352.495e9}};
  for (const auto& [name, expected] : bytes) {
    std::ifstream file(ZI_SOURCE_DIR "/config/models/" + name + "/config.json");
    const nlohmann::json shape = nlohmann::json::parse(file);
    const auto either = [&](const char* a, const char* b) {
      return shape.contains(a) ? shape.at(a).get<double>() : shape.at(b).get<double>();
    };
    const double hidden = either("n_embed", "hidden_size");
    const double layers = either("n_layer", "num_hidden_layers");
    const double heads = either("n_head", "num_attention_heads");
    const double vocabulary = shape.at("vocab_size").get<double>();
    const double parameters =
        layers * (12 * hidden * hidden + 13 * hidden) + vocabulary * hidden + 4 * hidden;
    EXPECT_NEAR(2 * parameters / expected, 1, 5e-4) << name;
    EXPECT_EQ(static_cast<int>(hidden) % static_cast<int>(heads), 0) << name;
    EXPECT_EQ(shape.at("model_type"), "bloom");
  }
}

}  // namespace
}  // namespace zi
