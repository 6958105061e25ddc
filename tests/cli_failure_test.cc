// What happens when something is wrong: one clear line, a non-zero exit on every rank, nothing
// lost.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include "cli_harness.h"

namespace zi::test {
namespace {

using testing::HasSubstr;

/// Lines of stderr that are the program's own errors, not mpirun's banner.
std::vector<std::string> error_lines(const std::string& err) {
  std::vector<std::string> out;
  std::istringstream lines(err);
  for (std::string line; std::getline(lines, line);) {
    if (line.find("error: ") != std::string::npos) out.push_back(line);
  }
  return out;
}

/// Runs on two ranks; expects one error line with `text` and exit code 2, within seconds.
void expect_refused(const std::vector<std::string>& arguments, const std::string& text) {
  const Ended ended = run_job(2, arguments);
  EXPECT_EQ(ended.code, 2) << ended.err;
  const auto errors = error_lines(ended.err);
  ASSERT_EQ(errors.size(), 1u) << ended.err;
  EXPECT_THAT(ended.err, HasSubstr(text));
  EXPECT_LT(ended.seconds, 20);
}

std::vector<std::string> with_prompt(const std::string& model, std::vector<std::string> more = {}) {
  std::vector<std::string> out = {"--model", model, "--prompt", "Jesus wept."};
  out.insert(out.end(), more.begin(), more.end());
  return out;
}

/// Replaces the JSON header of a safetensors file by what `edit` makes of it.
void edit_header(const std::string& path, const std::function<std::string(nlohmann::json)>& edit) {
  const std::string file = read_file(path);
  std::uint64_t bytes = 0;
  std::memcpy(&bytes, file.data(), sizeof(bytes));
  const std::string header = edit(nlohmann::json::parse(file.substr(8, bytes)));
  const std::uint64_t size = header.size();
  write_file(
      path, std::string(reinterpret_cast<const char*>(&size), 8) + header + file.substr(8 + bytes));
}

const std::string kFirst = "/model-00001-of-00003.safetensors";

TEST(BadInput, MissingModelNamesTheDownload) {
  expect_refused(with_prompt("nobody/nothing"), "download");
  expect_refused(with_prompt("/nonexistent/model"), "/nonexistent/model");
}

TEST(BadInput, TruncatedTensorFileIsNamedWithItsSizes) {
  const TemporaryFolder folder;
  const std::string model = copy_of_model(folder);
  std::filesystem::resize_file(model + kFirst, 5'000'000);
  expect_refused(with_prompt(model), "model-00001-of-00003.safetensors");
}

TEST(BadInput, OverlappingTensorsAreRefused) {
  const TemporaryFolder folder;
  const std::string model = copy_of_model(folder);
  edit_header(model + kFirst, [](nlohmann::json header) {
    nlohmann::json* first = nullptr;
    for (auto& [name, tensor] : header.items()) {
      if (name == "__metadata__") continue;
      if (first == nullptr) {
        first = &tensor;
      } else if (tensor.at("shape") == first->at("shape")) {
        tensor["data_offsets"] = first->at("data_offsets");
        break;
      }
    }
    return header.dump();
  });
  expect_refused(with_prompt(model), "model-00001-of-00003.safetensors");
}

TEST(BadInput, WrongTypeWrongShapeAndNanHeadersAreRefused) {
  const std::string tensor = "transformer.h.0.mlp.dense_h_to_4h.bias";
  const std::string named = "h.0.mlp.dense_h_to_4h.bias";
  const std::vector<std::pair<std::string, std::function<std::string(nlohmann::json)>>> cases = {
      {named,
       [&](nlohmann::json h) {
         h[tensor]["dtype"] = "I16";
         return h.dump();
       }},
      {named,
       [&](nlohmann::json h) {
         h[tensor]["shape"] = {2, 640};
         return h.dump();
       }},
      {"safetensors", [&](nlohmann::json h) {
         std::string text = h.dump();
         return text.replace(text.find("\"data_offsets\":[") + 16, 1, "NaN");
       }}};
  for (const auto& [text, edit] : cases) {
    const TemporaryFolder folder;
    const std::string model = copy_of_model(folder);
    edit_header(model + kFirst, edit);
    expect_refused(with_prompt(model), text);
  }
}

TEST(BadInput, MissingTensorIsNamed) {
  const TemporaryFolder folder;
  const std::string model = copy_of_model(folder);
  const std::string path = model + "/model.safetensors.index.json";
  auto index = nlohmann::json::parse(read_file(path));
  index["weight_map"].erase("transformer.h.3.mlp.dense_4h_to_h.weight");
  write_file(path, index.dump());
  expect_refused(with_prompt(model), "h.3.mlp.dense_4h_to_h.weight");
}

TEST(BadInput, PickledWeightsAreRefusedWithHowToConvert) {
  const TemporaryFolder folder;
  std::filesystem::copy(model() + "/config.json", folder / "config.json");
  std::filesystem::copy(model() + "/tokenizer.json", folder / "tokenizer.json");
  write_file(folder / "pytorch_model.bin", "x");
  expect_refused(with_prompt(folder.path()), "safe");
}

TEST(BadInput, BudgetsThatDoNotFitSayTheNumbers) {
  expect_refused(with_prompt(model(), {"--gpu-weight-budget", "1MB"}), "--nvme-offload-path");
  expect_refused(with_prompt(model(), {"--kv-budget", "1kB"}), "--kv-budget");
  expect_refused(with_prompt(model(), {"--batch-size", "100000", "--max-pass-tokens", "900000000"}),
                 "the plan does not fit");
}

TEST(BadInput, PathsThatCannotBeWrittenAreNamed) {
  expect_refused(with_prompt(model(), {"--nvme-offload-path", "/proc/zero-infer"}),
                 "/proc/zero-infer");
  expect_refused(with_prompt(model(), {"--output", "/nonexistent/out.jsonl"}),
                 "/nonexistent/out.jsonl");
}

TEST(BadInput, LimitsRefusesWhatItCannotMeasureOrWrite) {
  expect_refused({"limits", "--path", "/nonexistent/dir"}, "/nonexistent/dir: no file can be made");
  expect_refused({"limits", "--output", "/nonexistent/limits.json"}, "/nonexistent/limits.json");
  expect_refused({"limits", "--output", "/tmp"}, "Is a directory");
  expect_refused({"limits", "--pth", "/tmp"}, "--pth");
  expect_refused({"limits", "now"}, "now");
}

TEST(BadInput, UnknownFlagsAndKeysAreRefused) {
  expect_refused(with_prompt(model(), {"--batchsize", "3"}), "--batchsize");
  const TemporaryFolder folder;
  write_file(folder / "c.yaml", "model: " + model() + "\nprompt: a\nbatchsize: 3\n");
  expect_refused({"--config", folder / "c.yaml"}, "c.yaml:3");
}

TEST(BadInput, RanksWithDifferentSettingsAreRefusedByTheName) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"--load-format", "dummy"}, "the model's weights"},
      {{"--cpu-offload"}, "the tiers of the blocks"},
      {{"--travel", "activations"}, "--travel"},
      {{"--cpu-share", "auto"}, "--cpu-share"},
      {{"--temperature", "1"}, "the generation options"},
      {{"--no-special-tokens"}, "--no-special-tokens"},
      {{"--no-prefix-sharing"}, "--no-prefix-sharing"},
      {{"--score"}, "must be the same on every rank"}};
  for (const auto& [flags, name] : cases) {
    std::vector<std::string> arguments = with_prompt(model());
    for (const char* word : {":", "-np", "1", ZI_BINARY}) arguments.emplace_back(word);
    for (const std::string& word : with_prompt(model(), flags)) arguments.push_back(word);
    const Ended ended = run_job(1, arguments);
    EXPECT_EQ(ended.code, 2) << ended.err;
    EXPECT_EQ(error_lines(ended.err).size(), 1u) << ended.err;
    EXPECT_THAT(ended.err, HasSubstr(name));
  }
}

TEST(BadInput, RanksWithStopsThatOnlyLookAlikeAreRefused) {
  const auto expect_refused = [](const std::vector<std::string>& first,
                                 const std::vector<std::string>& second) {
    std::vector<std::string> arguments = with_prompt(model(), first);
    for (const char* word : {":", "-np", "1", ZI_BINARY}) arguments.emplace_back(word);
    for (const std::string& word : with_prompt(model(), second)) arguments.push_back(word);
    const Ended ended = run_job(1, arguments);
    EXPECT_EQ(ended.code, 2) << ended.err;
    EXPECT_THAT(ended.err, HasSubstr("the generation options"));
  };
  expect_refused({"--stop", "a|b"}, {"--stop", "a", "--stop", "b"});
  expect_refused({"--stop", "\xff"}, {"--stop", "\xfe"});
}

TEST(BadInput, UnusablePromptsAreNamedAndTheOthersRun) {
  const TemporaryFolder folder;
  write_file(folder / "in.jsonl",
             "{\"prompt\": \"Jesus wept.\", \"id\": \"good\"}\n"
             "{\"prompt\": \n"
             "{\"prompt\": \"\"}\n"
             "{\"prompt\": \"a\xff\"}\n"
             "{\"prompt_ids\": [1, 99999]}\n"
             "{\"prompt_ids\": [1], \"max_new_tokens\": 100000}\n"
             "{\"prompt\": \"In the beginning\", \"id\": \"too\"}\n");
  const Ended ended = run_job(2, {"--model", model(), "--prompts", folder / "in.jsonl", "--output",
                                  folder / "out.jsonl", "--max-new-tokens", "5"});
  EXPECT_EQ(ended.code, 3) << ended.err;
  for (int line : {2, 3, 4, 5, 6}) {
    EXPECT_THAT(ended.err, HasSubstr("in.jsonl:" + std::to_string(line)));
  }
  EXPECT_THAT(ended.err, HasSubstr("99999"));
  EXPECT_THAT(ended.err, HasSubstr("--kv-budget"));
  std::set<std::string> ids;
  for (const auto& line : json_lines(read_file(folder / "out.jsonl"))) ids.insert(line.at("id"));
  EXPECT_EQ(ids, (std::set<std::string>{"good", "too"}));
}

TEST(BadInput, PromptsBeyondTheModelsPositionsAreNamedAndTheOthersRun) {
  // Its sliding window, 128, is less than its positions and than the cache.
  const std::string model = ZI_TEST_DATA "/families/mistral-4x2x96-window";
  const auto prompt = [](int tokens, int more) {
    return nlohmann::json{{"prompt_ids", std::vector<int>(static_cast<std::size_t>(tokens), 65)},
                          {"max_new_tokens", more}}
               .dump() +
           "\n";
  };
  const TemporaryFolder folder;
  write_file(folder / "in.jsonl", prompt(100, 28) + prompt(100, 29) + prompt(3, 128));
  const Ended ended = run_job(
      1, {"--model", model, "--prompts", folder / "in.jsonl", "--output", folder / "out.jsonl"});
  EXPECT_EQ(ended.code, 3) << ended.err;
  EXPECT_THAT(ended.err, HasSubstr("in.jsonl:2: 100 prompt tokens and 29 new ones do not fit the "
                                   "model's positions (128 tokens)"));
  EXPECT_THAT(ended.err, HasSubstr("in.jsonl:3: 128 new tokens leave no room for a prompt in the "
                                   "model's positions"));
  EXPECT_THAT(ended.err, Not(HasSubstr("--kv-budget")));
  const auto lines = json_lines(read_file(folder / "out.jsonl"));
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines.front().at("token_ids").size(), 28u);
}

TEST(BadInput, PromptsLongerThanAnyContextAreRefusedBeforeTheyAreTokenised) {
  const TemporaryFolder folder;
  // A token of this model stands for a few bytes, and the cache holds a few hundred of them.
  const std::string text = std::string(1'100'000, 'x');
  write_file(folder / "in.jsonl",
             "{\"prompt\": \"Jesus wept.\", \"id\": \"good\"}\n{\"prompt\": \"" + text + "\"}\n" +
                 "{\"prompt\": \"Jesus wept.\", \"max_new_tokens\": 100000}\n");
  for (const char* mode : {"--quiet", "--score"}) {
    const Ended ended =
        run_job(2, {"--model", model(), "--prompts", folder / "in.jsonl", "--output",
                    folder / "out.jsonl", "--max-new-tokens", "5", "--kv-budget", "1MiB", mode});
    EXPECT_EQ(ended.code, 3) << ended.err;
    EXPECT_THAT(ended.err, HasSubstr("in.jsonl:2: the prompt has 1100000 bytes, which are "));
    EXPECT_THAT(ended.err, HasSubstr("--kv-budget"));
    const auto lines = json_lines(read_file(folder / "out.jsonl"));
    ASSERT_FALSE(lines.empty());
    EXPECT_EQ(lines.front().at("id"), "good");
    if (std::string(mode) == "--score") continue;
    EXPECT_EQ(lines.size(), 1u);
    EXPECT_THAT(ended.err,
                testing::ContainsRegex(
                    "in.jsonl:3: . prompt tokens and 100000 new ones do not fit the KV"));
  }
}

TEST(BadInput, PromptsThatCannotFitAreNamedBeforeTheModelIsLoaded) {
  const TemporaryFolder folder;
  const std::string out = folder / "out.jsonl";
  // Beyond the model's positions (128) and beyond the cache: no budget helps.
  const std::string short_model = ZI_TEST_DATA "/families/mistral-4x2x96-window";
  const std::string in = folder / "in.jsonl";
  const auto ids = [](int tokens) {
    return nlohmann::json{{"prompt_ids", std::vector<int>(static_cast<std::size_t>(tokens), 65)}}
               .dump() +
           "\n";
  };
  write_file(in, ids(120) + ids(40));
  const Ended none = run_job(2, {"--model", short_model, "--prompts", in, "--output", out,
                                 "--max-new-tokens", "100", "--kv-budget", "64kB"});
  EXPECT_EQ(none.code, 3);
  EXPECT_THAT(none.err, HasSubstr("in.jsonl:1: 120 prompt tokens and 100 new ones do not fit the "
                                  "model's positions (128 tokens); shorten"));
  EXPECT_THAT(none.err, HasSubstr("2 prompts failed (named above); there were no others"));
  EXPECT_THAT(none.err, Not(HasSubstr("--kv-budget")));
  EXPECT_THAT(none.err, Not(HasSubstr("loaded in"))) << "there was nothing to load for";
  // What is said to be enough is, and one unit less is not.
  std::vector<std::string> arguments = {"--model",  model(),   "--prompts",        in,
                                        "--output", out,       "--max-new-tokens", "3",
                                        "--travel", "weights", "--kv-budget",      "1MiB"};
  write_file(in, ids(500) + ids(5));
  const Ended one = run_job(2, arguments);
  EXPECT_EQ(one.code, 3);
  EXPECT_EQ(json_lines(read_file(out)).size(), 1u);
  const std::string before = "give --kv-budget ";
  const auto at = one.err.find(before);
  ASSERT_NE(at, std::string::npos) << one.err;
  EXPECT_LT(at, one.err.find("loaded in")) << one.err;
  const int needed = std::stoi(one.err.substr(at + before.size()));
  arguments.back() = std::to_string(needed - 1) + "MiB";
  EXPECT_EQ(run_job(2, arguments).code, 3);
  arguments.back() = std::to_string(needed) + "MiB";
  EXPECT_EQ(run_job(2, arguments).code, 0);
}

TEST(BadInput, ARunInWhichEveryPromptWasRefusedTellsNoRates) {
  // From a pipe, whose prompts nobody sees before the model is loaded.
  const Ended ended = run_job(2, {"--model", model(), "--prompts", "-"},
                              "{\"prompt_ids\": [99999]}\n{\"prompt_ids\": [1, 99999]}\n");
  EXPECT_EQ(ended.code, 3);
  EXPECT_THAT(ended.err, HasSubstr("no prompt was computed; loaded in "));
  for (const char* rate : {"tokens/s", "B/s", "what rank 0 moved"}) {
    EXPECT_THAT(ended.err, Not(HasSubstr(rate)));
  }
}

TEST(BadInput, AFileWhosePromptsAreAllDoneLoadsNoModel) {
  const TemporaryFolder folder;
  write_file(folder / "in.jsonl", "{\"prompt\": \"Jesus wept.\"}\n");
  std::vector<std::string> arguments = {
      "--model",  model(),     "--prompts", folder / "in.jsonl", "--output", folder / "out",
      "--resume", "--backend", "cpu",       "--max-new-tokens",  "3"};
  ASSERT_EQ(run_job(2, arguments).code, 0);
  arguments.insert(arguments.end(), {"--nvme-offload-path", folder / "nvme"});
  const Ended again = run_job(2, arguments);
  EXPECT_EQ(again.code, 0);
  EXPECT_THAT(again.err, HasSubstr("no prompt was left to run"));
  EXPECT_FALSE(std::filesystem::exists(folder / "nvme")) << "shard files were written";
}

TEST(BadInput, TokensBesideTheTokenizerThatTheModelHasNoRowForAreNamed) {
  const TemporaryFolder folder;
  std::filesystem::copy(model(), folder / "model");
  write_file(folder / "model/added_tokens.json", R"({"<evil\u001b>": 4096})");
  write_file(folder / "in.jsonl",
             "{\"prompt\": \"Jesus wept.\", \"id\": \"good\"}\n"
             "{\"prompt\": \"Jesus <evil\\u001b> wept.\"}\n");
  const Ended ended =
      run_job(2, {"--model", folder / "model", "--prompts", folder / "in.jsonl", "--output",
                  folder / "out.jsonl", "--max-new-tokens", "5", "--quiet"});
  EXPECT_EQ(ended.code, 3) << ended.err;
  EXPECT_THAT(ended.err,
              HasSubstr("warning: the tokenizer has ids up to 4096, and the model has no "
                        "embedding rows from 4096 on"));
  EXPECT_THAT(ended.err, HasSubstr("in.jsonl:2: token id 4096 (`<evil\uFFFD>`) is out of range"));
  EXPECT_EQ(ended.err.find('\x1b'), std::string::npos);
  EXPECT_EQ(json_lines(read_file(folder / "out.jsonl")).size(), 1u);
}

TEST(BadInput, DamagedShardFileIsFoundInMidRunAndEndsTheJob) {
  const TemporaryFolder folder;
  const std::vector<std::string> arguments =
      with_prompt(model(), {"--nvme-offload-path", folder / "nvme", "--max-new-tokens", "3"});
  ASSERT_EQ(run_job(2, arguments).code, 0);
  for (const auto& e : std::filesystem::recursive_directory_iterator(folder / "nvme")) {
    if (e.path().filename().string().find("rank-1") == std::string::npos) continue;
    if (e.path().extension() != ".shard") continue;
    std::fstream file(e.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(e.file_size() - 100'000));
    file.put('\x55').put('\x2a').put('\x11');
  }
  const Ended ended = run_job(2, arguments);
  EXPECT_NE(ended.code, 0);
  EXPECT_THAT(ended.err, HasSubstr("checksum"));
  EXPECT_THAT(ended.err, HasSubstr("[rank 1/2"));
}

TEST(BadInput, AFullStandardOutputIsNotTakenForSuccess) {
  const std::string command = std::string(ZI_BINARY) + " --help > /dev/full 2> /dev/null";
  EXPECT_NE(std::system(command.c_str()), 0);
}

TEST(BadInput, AFileWithoutPromptsIsSaidToHaveNone) {
  const Ended ended = run_job(1, {"--model", model(), "--prompts", "-", "--output", "-"}, "\n");
  EXPECT_EQ(ended.code, 0) << ended.err;
  EXPECT_EQ(ended.out, "");
  EXPECT_NE(ended.err.find("there was no prompt to run"), std::string::npos) << ended.err;
}

TEST(Failure, AKilledRankEndsTheJobAtOnceAndKeepsFinishedSequences) {
  const TemporaryFolder folder;
  std::string prompts;
  for (int i = 0; i < 5000; ++i) {
    prompts +=
        R"({"prompt": "In the beginning", "max_new_tokens": )" + std::to_string(1 + i % 40) + "}\n";
  }
  write_file(folder / "in.jsonl", prompts);
  for (const std::string travel : {"weights", "activations"}) {
    const std::string out = folder / travel + ".jsonl";
    Job job(3, {"--model", model(), "--prompts", folder / "in.jsonl", "--output", out, "--travel",
                travel});
    for (int i = 0; i < 6000 && read_file(out).size() < 4000; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    const auto ranks = job.rank_pids();
    ASSERT_EQ(ranks.size(), 3u);
    kill(ranks[1], SIGKILL);
    const auto start = std::chrono::steady_clock::now();
    const Ended ended = job.wait(20);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10)) << travel;
    EXPECT_NE(ended.code, 0) << travel;
    EXPECT_GT(json_lines(read_file(out)).size(), 10u) << travel;
  }
}

}  // namespace
}  // namespace zi::test
