// Checkpoints that could give wrong answers without a word: other weights behind the same names,
// sizes and times, ranks with different models, files that contradict each other.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>

#include "cli_harness.h"

namespace zi::test {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

const std::string kFirstFile = "/model-00001-of-00003.safetensors";
const std::string kQkv = "transformer.h.0.self_attention.query_key_value.weight";

std::vector<std::string> run_of(const std::string& model, std::vector<std::string> more = {}) {
  std::vector<std::string> out = {"--model",          model, "--prompt", "In the beginning God",
                                  "--max-new-tokens", "16",  "--output", "-"};
  out.insert(out.end(), more.begin(), more.end());
  return out;
}

/// Token ids of the only result.
nlohmann::json token_ids_of(const Ended& ended) {
  EXPECT_EQ(ended.code, 0) << ended.err;
  const auto lines = json_lines(ended.out);
  EXPECT_EQ(lines.size(), 1u) << ended.err;
  return lines.empty() ? nlohmann::json() : lines[0].at("token_ids");
}

void edit_json(const std::string& path, const std::function<void(nlohmann::json&)>& edit) {
  auto json = nlohmann::json::parse(read_file(path));
  edit(json);
  write_file(path, json.dump());
}

/// Overwrites the bytes of a tensor in place, which changes neither the file's size nor, in the
/// end, its mtime.
void edit_tensor(const std::string& path, const std::string& tensor,
                 const std::function<void(std::string&)>& edit) {
  struct stat before {};
  ASSERT_EQ(stat(path.c_str(), &before), 0);
  const std::string bytes = read_file(path);
  std::uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof(header));
  const auto offsets = nlohmann::json::parse(bytes.substr(8, header)).at(tensor).at("data_offsets");
  const std::size_t begin = 8 + header + offsets[0].get<std::size_t>();
  std::string values = bytes.substr(begin, 8 + header + offsets[1].get<std::size_t>() - begin);
  edit(values);
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(begin));
    file.write(values.data(), static_cast<std::streamsize>(values.size()));
  }
  const timespec times[2] = {before.st_atim, before.st_mtim};
  ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
}

/// What merging a LoRA does to a fused matrix [heads, 3, 64, 320] of bfloat16: nearly every value
/// of q changes a little.
void merge_lora(std::string& values) {
  constexpr std::size_t kPart = 64 * 320 * 2;
  for (std::size_t i = 0; i < values.size(); i += 2) {
    if (i / kPart % 3 == 0) values[i] ^= 0x40;  // by up to a half of the value
  }
}

int folders_in(const std::string& path) {
  int count = 0;
  for (const auto& e : fs::directory_iterator(path)) count += e.is_directory() ? 1 : 0;
  return count;
}

TEST(Replaced, WeightsUnderTheSameNameSizeAndMtimeAreServedAnew) {
  const TemporaryFolder folder;
  const std::string model = copy_of_model(folder);
  const auto with_nvme = run_of(model, {"--nvme-offload-path", folder / "nvme"});
  const auto before = token_ids_of(run_job(2, with_nvme));
  EXPECT_THAT(run_job(2, with_nvme).err, Not(HasSubstr("shards")));
  for (int layer : {0, 1, 2}) {
    for (const char* file : {"1", "2"}) {
      const std::string path = model + "/model-0000" + file + "-of-00003.safetensors";
      const std::string tensor =
          "transformer.h." + std::to_string(layer) + ".mlp.dense_4h_to_h.weight";
      if (read_file(path).substr(0, 20000).find("\"" + tensor + "\"") == std::string::npos)
        continue;
      edit_tensor(path, tensor, [](std::string& values) {
        for (std::size_t i = 1; i < values.size(); i += 2) values[i] ^= '\x80';  // each sign
      });
    }
  }
  const auto expected = token_ids_of(run_job(2, run_of(model)));
  EXPECT_NE(expected, before);
  const Ended after = run_job(2, with_nvme);
  EXPECT_EQ(token_ids_of(after), expected);
  EXPECT_EQ(count_of(after.err, "also holds shard files of"), 1u) << after.err;
  EXPECT_THAT(after.err, Not(HasSubstr("samples of the weights are the same")));
  EXPECT_EQ(folders_in(folder / "nvme"), 2);
}

TEST(Replaced, ShardsAreWrittenAnewAfterATouchAndOneLineSaysWhy) {
  const TemporaryFolder folder;
  const std::string model = copy_of_model(folder);
  const auto with_nvme = run_of(model, {"--nvme-offload-path", folder / "nvme"});
  const auto before = token_ids_of(run_job(2, with_nvme));
  fs::last_write_time(model + kFirstFile,
                      fs::last_write_time(model + kFirstFile) + std::chrono::hours(1));
  const Ended after = run_job(2, with_nvme);
  EXPECT_EQ(token_ids_of(after), before);
  EXPECT_EQ(count_of(after.err, "samples of the weights are the same"), 1u) << after.err;
  EXPECT_EQ(folders_in(folder / "nvme"), 2);
  EXPECT_THAT(run_job(2, with_nvme).err, Not(HasSubstr("also holds")));
}

/// Rank 0 runs the bundled model, rank 1 the other.
Ended run_two(const std::string& other) {
  std::vector<std::string> arguments = run_of(model());
  for (const char* word : {":", "-np", "1", ZI_BINARY}) arguments.emplace_back(word);
  for (const std::string& word : run_of(other)) arguments.push_back(word);
  return run_job(1, arguments);
}

TEST(DifferentRanks, AreRefusedByTheNameOfWhatDiffers) {
  struct Case {
    std::string name;  // that the message must have
    std::function<void(const std::string&)> change;
  };
  const auto config = [](const char* key, nlohmann::json value) {
    return [=](const std::string& model) {
      edit_json(model + "/config.json", [&](nlohmann::json& c) { c[key] = value; });
    };
  };
  const std::vector<Case> cases = {
      {"the model's weights",
       [](const std::string& model) { edit_tensor(model + kFirstFile, kQkv, merge_lora); }},
      {"`eos_token_id` of the model's config must be the same on every rank: rank 0 on ",
       [](const std::string& model) {
         edit_json(model + "/generation_config.json", [](nlohmann::json& c) {
           c["eos_token_id"] = {2, 17};
         });
       }},
      {"`apply_residual_connection_post_layernorm` of the model's config",
       config("apply_residual_connection_post_layernorm", true)},
      {"`layer_norm_epsilon` of the model's config", config("layer_norm_epsilon", 2e-5)},
      {"`bos_token_id` of the model's config", config("bos_token_id", 7)},
      {"`n_layer` of the model's config", config("n_layer", 5)},
      {"the tokenizer", [](const std::string& model) {
         edit_json(model + "/tokenizer.json", [](nlohmann::json& t) {
           auto& vocabulary = t["model"]["vocab"];
           std::swap(vocabulary["a"], vocabulary["e"]);
         });
       }}};
  for (const Case& c : cases) {
    const TemporaryFolder folder;
    const std::string other = copy_of_model(folder);
    c.change(other);
    const Ended ended = run_two(other);
    EXPECT_EQ(ended.code, 2) << c.name << "\n" << ended.err;
    EXPECT_EQ(count_of(ended.err, "error: "), 1u) << ended.err;
    EXPECT_THAT(ended.err, AllOf(HasSubstr(c.name), HasSubstr("must be the same on every rank")));
  }
}

TEST(DifferentRanks, MayHaveCopiesOfTheModelInOtherPlacesWithOtherTimes) {
  const TemporaryFolder folder;
  const std::string other = copy_of_model(folder);
  for (const auto& file : fs::directory_iterator(other)) {
    fs::last_write_time(file, fs::last_write_time(file) - std::chrono::hours(9));
  }
  EXPECT_EQ(token_ids_of(run_two(other)), token_ids_of(run_job(2, run_of(model()))));
}

/// What a job wrote to stderr, without the line of CPUs that lack bfloat16.
std::string warnings_of_the_checkpoint(const Ended& ended) {
  std::string rest;
  std::istringstream lines(ended.err);
  for (std::string line; std::getline(lines, line);) {
    if (line.find("this CPU has no bfloat16 products") == std::string::npos) rest += line + "\n";
  }
  return rest;
}

TEST(Contradictions, TheSingleFileGoesBeforeAnIndexAndOneLineSaysSo) {
  const TemporaryFolder folder;
  const std::string model = copy_of_model(folder);
  const std::string command = std::string(ZI_MAKE_CHECKPOINT) + " --single --seed 3 --config " +
                              model + "/config.json --out " + model + " > /dev/null";
  ASSERT_EQ(std::system(command.c_str()), 0);
  const Ended both = run_job(2, run_of(model));
  EXPECT_EQ(count_of(both.err, "model.safetensors is used"), 1u) << both.err;
  fs::remove(model + "/model.safetensors.index.json");
  const Ended single = run_job(2, run_of(model));
  EXPECT_EQ(token_ids_of(both), token_ids_of(single));
  EXPECT_THAT(warnings_of_the_checkpoint(single), Not(HasSubstr("warning")));
}

TEST(Contradictions, OfConfigAndWeightsAreRefusedOrSaidOnce) {
  struct Case {
    nlohmann::json change;
    int code;
    std::string text;
  };
  const std::vector<Case> cases = {
      {{{"tie_word_embeddings", false}}, 2, "the checkpoint has no lm_head.weight"},
      {{{"n_layer", 8}},
       2,
       "asks for 8 blocks (n_layer or num_hidden_layers), the checkpoint holds 6"},
      {{{"n_layer", 4}},
       0,
       "asks for 4 blocks (n_layer or num_hidden_layers), the checkpoint holds 6"},
      {{{"vocab_size", 4000}}, 2, "has the shape [4096, 320], config.json asks for [4000, 320]"}};
  for (const Case& c : cases) {
    const TemporaryFolder folder;
    const std::string model = copy_of_model(folder);
    edit_json(model + "/config.json", [&](nlohmann::json& config) { config.update(c.change); });
    const Ended ended = run_job(2, run_of(model));
    EXPECT_EQ(ended.code, c.code) << ended.err;
    EXPECT_EQ(count_of(ended.err, c.text), 1u) << ended.err;
    if (c.code != 0) continue;
    const Ended plan = run_job(0, {"plan", "--model", model, "--ranks", "2"});
    EXPECT_EQ(plan.code, 0) << plan.err;
    EXPECT_THAT(plan.out, HasSubstr(c.text));
  }
}

TEST(Contradictions, AnAdapterBesideTheWeightsIsSaidNotToBeApplied) {
  const TemporaryFolder folder;
  const std::string model = copy_of_model(folder);
  write_file(model + "/adapter_config.json", "{}");
  const Ended ended = run_job(2, run_of(model));
  EXPECT_EQ(ended.code, 0) << ended.err;
  EXPECT_EQ(count_of(ended.err, "adapter_config.json"), 1u) << ended.err;
}

TEST(Contradictions, DummyWeightsTakeAnyConfig) {
  const TemporaryFolder folder;
  const std::string model = copy_of_model(folder);
  edit_json(model + "/config.json", [](nlohmann::json& c) {
    c["tie_word_embeddings"] = false;
    c["n_layer"] = 2;
  });
  const Ended ended = run_job(2, run_of(model, {"--load-format", "dummy"}));
  EXPECT_EQ(ended.code, 0) << ended.err;
  EXPECT_THAT(warnings_of_the_checkpoint(ended), Not(HasSubstr("warning")));
}

}  // namespace
}  // namespace zi::test
