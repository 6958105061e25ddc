// The whole engine with weights of fewer bits, for the ranks that mpirun started: on every tier, in
// every batch and with any shape it is the run of the values that the packed weights have.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "engine_harness.h"
#include "sanitized.h"

namespace zi::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const std::string kModel = data_path("bloom-kjv");
constexpr std::int64_t kNewTokens = 4;

struct Case {
  std::string name;
  WeightChoice blocks;
  WeightChoice head;
  DType dtype;
  // How far the best logits of the first step, averaged over prompts, may be from the reference's
  // of bfloat16 weights. Measured: 0.160, 2.10 and 1.68; the reference's own bfloat16 run: 0.112.
  double error;
};

/// int4 weights are bfloat16 exactly; int8 ones are compared where nothing is rounded.
const Case kCases[] = {
    {"int8", WeightChoice::kInt8, WeightChoice::kInt8, DType::kFloat32, 0.2},
    {"int4", WeightChoice::kInt4, WeightChoice::kInt4, DType::kBFloat16, 2.5},
    {"int4_and_stored_head", WeightChoice::kInt4, WeightChoice::kStored, DType::kFloat32, 2.0}};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

RunConfig config_of(const Case& c, const std::string& model) {
  RunConfig config = test_config(model);
  config.weight_format = c.blocks;
  config.head_format = c.head;
  config.compute_dtype = c.dtype;
  config.max_new_tokens = kNewTokens;
  config.ignore_eos = true;
  return config;
}

/// The same run of a checkpoint whose elements are those values.
RunConfig unpacked(RunConfig config, const std::string& model) {
  config.model = model;
  config.load_format = LoadFormat::kAuto;
  config.weight_format = config.head_format = WeightChoice::kStored;
  return config;
}

json golden() {
  std::ifstream file(kModel + "/golden.json");
  json prompts = json::array();
  for (const json& entry : json::parse(file)) prompts.push_back(entry.at("float32"));
  return prompts;
}

/// Collective. A run of prompts that are given by their tokens.
Played play(RunConfig config, const std::vector<std::vector<std::int32_t>>& prompts,
            std::int64_t batch, const SharedFolder& folder, std::int64_t pass_tokens = 512) {
  config.batch_size = {batch};
  config.max_pass_tokens = std::max(pass_tokens, batch);
  const std::string path = folder.path() + "/prompts.jsonl";
  if (world().rank() == 0) {
    std::ofstream out(path);
    for (const auto& ids : prompts) out << json{{"prompt_ids", ids}}.dump() << "\n";
  }
  world().barrier();
  const auto fail = [](const std::string& message) { ADD_FAILURE() << message; };
  const auto source = world().rank() == 0 ? prompts_from_jsonl(path, fail) : nullptr;
  return test::play(config, source.get());
}

/// On rank 0: no bit differs on the CPU; on a GPU the first token's logits of each prompt differ by
/// rounding.
void expect_same(const Played& a, const Played& b,
                 const std::vector<std::vector<std::int32_t>>& prompts, DType dtype,
                 const std::string& what) {
  if (exact_bits()) return expect_same_bits(a.logits, b.logits, what);
  if (world().rank() != 0) return;
  // As in engine_mpi_test.
  const float bound = dtype == DType::kFloat32 ? 1e-3f : 0.4f;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const auto& x = a.logits.at({i, prompts[i].size()});
    const auto& y = b.logits.at({i, prompts[i].size()});
    for (std::size_t k = 0; k < x.size(); ++k) ASSERT_NEAR(x[k], y[k], bound) << what;
  }
}

class PackedModel : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (const std::string why = missing_backend(kModel); !why.empty()) GTEST_SKIP() << why;
  }
  /// Collective.
  std::string unpacked_model(const RunConfig& config) {
    const std::string to = folder_.path() + "/unpacked";
    if (world().rank() == 0) make_unpacked_checkpoint(config, to);
    world().barrier();
    return to;
  }
  SharedFolder folder_;
};

TEST_P(PackedModel, IsTheRunOfItsUnpackedValuesOnEveryTierAndBatchWithTheSameBits) {
  std::vector<std::vector<std::int32_t>> prompts;
  for (const json& g : golden()) prompts.push_back(g.at("prompt_ids"));
  prompts.resize(4);
  const RunConfig config = config_of(GetParam(), kModel);
  const Played base = play(config, prompts, 16, folder_);
  const Played values = play(unpacked(config, unpacked_model(config)), prompts, 16, folder_);
  if (world().rank() == 0) {
    EXPECT_EQ(base.results.size(), prompts.size());
  }
  expect_same(values, base, prompts, GetParam().dtype, "the unpacked values");
  // A block's shard of int8, or of int4.
  const std::size_t block = (GetParam().blocks == WeightChoice::kInt8 ? 1'267'200 : 691'200);
  const auto places = placements(block / static_cast<std::size_t>(world().size()) + 8192);
  for (std::size_t p = 0; p < places.size(); ++p) {
    // Where the head rests does not hang on where blocks do: one mix tells as much as all.
    // Under a sanitizer, nor do the tiers' reads and threads hang on the bits of a code.
    const bool alike = GetParam().head == WeightChoice::kStored ||
                       (kSanitized && GetParam().blocks == WeightChoice::kInt8);
    if (alike && p + 1 < places.size()) continue;
    const std::int64_t batch = std::array{1, 3, 16}[p % 3];
    const std::string what = fmt::format("{}, {} lanes", places[p].name, batch);
    const Played other = play(placed(config, places[p], folder_.path()), prompts, batch, folder_);
    expect_same(base, other, prompts, GetParam().dtype, what);
  }
  expect_same(base, play(config, prompts, 4, folder_, 5), prompts, GetParam().dtype,
              "chunks of 5 rows");
}

TEST_P(PackedModel, HasLogitsNearTheReferences) {
  const json all = golden();
  std::vector<std::vector<std::int32_t>> prompts;
  for (const json& g : all) prompts.push_back(g.at("prompt_ids"));
  RunConfig config = config_of(GetParam(), kModel);
  config.max_new_tokens = 1;
  const Played run = play(config, prompts, 16, folder_);
  if (world().rank() != 0) return;
  double sum = 0;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const std::vector<float>& row = run.logits.at({i, prompts[i].size()});
    double worst = 0;
    for (std::size_t k = 0; k < 5; ++k) {
      const auto id = all[i].at("top5_ids")[k].get<std::size_t>();
      worst = std::max(worst, std::abs(row[id] - all[i].at("top5_logits")[k].get<double>()));
    }
    sum += worst;
  }
  const double mean = sum / static_cast<double>(prompts.size());
  fmt::print("[          ] {}: worst of the five best logits, averaged: {:.4f}\n", GetParam().name,
             mean);
  EXPECT_LE(mean, GetParam().error);
}

TEST_P(PackedModel, HasShardFilesOfItsOwnWhichAreUsedAgain) {
  const std::vector<std::vector<std::int32_t>> prompts = {{5, 6, 7}};
  const Placement nvme = placements(1)[2];
  const auto run = [&](const Case& c) {
    RunConfig config = placed(config_of(c, kModel), nvme, folder_.path() + "/nvme");
    config.gpu_weight_budget = 0;  // or a GPU would have them all
    play(config, prompts, 1, folder_);
    world().barrier();
    std::set<std::pair<std::string, fs::file_time_type>> files;
    for (const auto& e : fs::recursive_directory_iterator(folder_.path() + "/nvme")) {
      if (e.path().extension() == ".shard") {
        files.emplace(e.path().string(), fs::last_write_time(e.path()));
      }
    }
    world().barrier();
    return files;
  };
  Case stored = GetParam();
  stored.blocks = WeightChoice::kStored;
  const auto ranks = static_cast<std::size_t>(world().size());
  const auto first = run(GetParam());
  EXPECT_EQ(first.size(), ranks);
  const auto both = run(stored);
  EXPECT_EQ(both.size(), 2 * ranks);
  EXPECT_TRUE(std::ranges::includes(both, first)) << "a file was written again";
  EXPECT_EQ(run(GetParam()), both);
}

TEST_P(PackedModel, OfOddShapesWithFewerRowsThanRanksIsTheRunOfItsValues) {
  // One row a rank, ranks without rows, padding, columns that fill no group and no block of codes.
  for (const auto& [hidden, vocabulary] : {std::pair{5, 3}, {21, 7}}) {
    // One name for both: shard files of the other shape are not taken.
    const std::string model = folder_.path() + "/odd";
    world().barrier();
    if (world().rank() == 0) {
      fs::remove_all(model);
      fs::remove_all(folder_.path() + "/unpacked");
      fs::create_directory(model);
      std::ofstream(model + "/config.json")
          << json{{"model_type", "bloom"}, {"hidden_size", hidden},    {"n_head", 1},
                  {"n_layer", 3},          {"vocab_size", vocabulary}, {"eos_token_id", 2}}
                 .dump();
      fs::copy(kModel + "/tokenizer.json", model + "/tokenizer.json");
    }
    world().barrier();
    RunConfig config = config_of(GetParam(), model);
    config.load_format = LoadFormat::kDummy;
    const std::vector<std::vector<std::int32_t>> prompts = {{0, 1, 2, 1}, {1}, {2, 2, 0}};
    const Played base = play(config, prompts, 4, folder_);
    if (world().rank() == 0) {
      EXPECT_EQ(base.results.size(), prompts.size());
    }
    const Played values = play(unpacked(config, unpacked_model(config)), prompts, 4, folder_);
    expect_same(values, base, prompts, GetParam().dtype, "the unpacked values");
    for (const Placement& place : placements(4096)) {
      const Played other = play(placed(config, place, folder_.path()), prompts, 2, folder_);
      expect_same(base, other, prompts, GetParam().dtype, place.name);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, PackedModel, testing::ValuesIn(kCases),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace zi::test
