// Small models of every family, and of every format of quantized weights, against the reference's
// outputs (data/make_families.py, data/make_quantized.py), for the ranks that mpirun started.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine_harness.h"
#include "sanitized.h"

namespace zi::test {
namespace {

struct Golden {
  std::vector<std::int32_t> prompt_ids;
  std::vector<std::int32_t> greedy_ids;
  std::size_t sure;  // so many of them have no second logit within 0.01
  std::vector<float> first_logits;
  std::size_t last_step;  // whose inputs are sure
  std::vector<float> last_logits;
  double bfloat16_error;  // of the reference's own first step
};

std::vector<Golden> read_golden(const std::string& model) {
  std::ifstream file(model + "/golden.json");
  std::vector<Golden> out;
  for (const auto& g : nlohmann::json::parse(file)) {
    out.push_back({g.at("prompt_ids"), g.at("greedy_ids"), g.at("sure"), g.at("first_logits"),
                   g.at("last_step"), g.at("last_logits"), g.at("bfloat16_error")});
  }
  return out;
}

double worst(const std::vector<float>& got, const std::vector<float>& want) {
  EXPECT_EQ(got.size(), want.size());
  double error = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    error = std::max(error, static_cast<double>(std::abs(got[i] - want[i])));
  }
  return error;
}

class FamilyModel : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::string why = missing_backend(model());
    if (!why.empty()) GTEST_SKIP() << why;
    golden_ = read_golden(model());
  }
  static std::string model() { return data_path(GetParam()); }

  static bool is_quantized() { return GetParam().starts_with("quantized/"); }

  /// Collective.
  Played play(const Placement& placement, DType dtype, std::int64_t batch,
              std::int64_t pass_tokens = 512, std::optional<std::size_t> kv_budget = {}) {
    return play(test_config(model()), placement, dtype, batch, pass_tokens, kv_budget);
  }
  Played play(RunConfig config, const Placement& placement, DType dtype, std::int64_t batch,
              std::int64_t pass_tokens = 512, std::optional<std::size_t> kv_budget = {}) {
    config = placed(config, placement, folder_.path());
    config.compute_dtype = dtype;
    config.batch_size = {batch};
    config.max_new_tokens = std::ssize(golden_.front().greedy_ids);
    config.max_pass_tokens = std::max(pass_tokens, batch);
    config.kv_budget = kv_budget;
    const std::string path = folder_.path() + "/prompts.jsonl";
    if (world().rank() == 0) {
      std::ofstream out(path);
      for (const Golden& g : golden_) {
        out << nlohmann::json{{"prompt_ids", g.prompt_ids}}.dump() << "\n";
      }
    }
    world().barrier();
    const auto fail = [](const std::string& message) { ADD_FAILURE() << message; };
    const auto source = world().rank() == 0 ? prompts_from_jsonl(path, fail) : nullptr;
    return test::play(config, source.get());
  }

  /// On rank 0.
  void expect_ids(const Played& run) const {
    ASSERT_EQ(run.results.size(), golden_.size());
    for (const Result& r : run.results) {
      const Golden& g = golden_[r.index];
      ASSERT_EQ(r.token_ids.size(), g.greedy_ids.size());
      for (std::size_t i = 0; i < g.sure; ++i) {
        ASSERT_EQ(r.token_ids[i], g.greedy_ids[i]) << "prompt " << r.index << ", new token " << i;
      }
    }
  }
  const std::vector<float>& logits(const Played& run, std::size_t prompt, std::size_t step) const {
    return run.logits.at({prompt, golden_[prompt].prompt_ids.size() + step});
  }

  std::vector<Golden> golden_;
  SharedFolder folder_;
};

TEST_P(FamilyModel, MatchesTheReferenceOnEveryTierWithTheSameBits) {
  const Played base = play(kDeviceOnly, DType::kFloat32, 16);
  if (world().rank() == 0) {
    expect_ids(base);
    double error = 0;
    for (std::size_t i = 0; i < golden_.size(); ++i) {
      error = std::max(error, worst(logits(base, i, 0), golden_[i].first_logits));
      error = std::max(error, worst(logits(base, i, golden_[i].last_step), golden_[i].last_logits));
    }
    EXPECT_LE(error, 1e-3);
    fmt::print("[          ] {}: worst logit {:.2e}\n", GetParam(), error);
  }
  if (!exact_bits()) return;
  const std::size_t block = std::filesystem::file_size(model() + "/model.safetensors") / 3;
  const auto all = placements(block / static_cast<std::size_t>(world().size()));
  // Tiers know rows and formats, not families: under a sanitizer the mix of all of them is enough.
  for (std::size_t p = kSanitized ? all.size() - 1 : 0; p < all.size(); ++p) {
    const std::int64_t batch = std::array{1, 3, 16}[p % 3];
    const std::string what = fmt::format("{}, {} lanes", all[p].name, batch);
    expect_same_bits(base.logits, play(all[p], DType::kFloat32, batch).logits, what);
  }
  expect_same_bits(base.logits, play(kDeviceOnly, DType::kFloat32, 4, 5).logits,
                   "chunks of 5 rows");
}

TEST_P(FamilyModel, IsAsNearToTheReferenceInBfloat16AsTheReferencesOwnRunOrNearly) {
  const Played run = play(kDeviceOnly, DType::kBFloat16, 3);
  if (world().rank() != 0) return;
  double ours = 0;
  double theirs = 0;
  for (std::size_t i = 0; i < golden_.size(); ++i) {
    ours += worst(logits(run, i, 0), golden_[i].first_logits);
    theirs += golden_[i].bfloat16_error;
  }
  EXPECT_LE(ours, 1.25 * theirs);
  fmt::print("[          ] {}: worst logits, averaged: {:.4f}, the reference's {:.4f}\n",
             GetParam(), ours / static_cast<double>(golden_.size()),
             theirs / static_cast<double>(golden_.size()));
}

TEST_P(FamilyModel, PackedIsTheRunOfItsUnpackedValuesOnEveryTierWithTheSameBits) {
  RunConfig config = test_config(model());
  if (!is_quantized()) config.weight_format = WeightChoice::kInt4;
  config.head_format = WeightChoice::kInt8;
  const std::string unpacked = folder_.path() + "/unpacked";
  if (world().rank() == 0) make_unpacked_checkpoint(config, unpacked);
  world().barrier();
  const Played base = play(config, kDeviceOnly, DType::kFloat32, 16);
  const Played values = play(test_config(unpacked), kDeviceOnly, DType::kFloat32, 16);
  if (world().rank() == 0) {
    ASSERT_EQ(base.results.size(), golden_.size());
    if (!exact_bits()) {
      for (std::size_t i = 0; i < golden_.size(); ++i) {
        EXPECT_LE(worst(logits(base, i, 0), logits(values, i, 0)), 1e-3);
      }
    }
  }
  if (!exact_bits()) return;
  expect_same_bits(values.logits, base.logits, "the unpacked values");
  for (const Placement& place : {placements(1)[1], placements(1)[2]}) {
    expect_same_bits(base.logits, play(config, place, DType::kFloat32, 3, 5).logits, place.name);
  }
}

/// The directory's name, in letters and digits.
std::string name_of_model(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param.substr(info.param.find('/') + 1);
  std::ranges::replace(name, '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(
    Families, FamilyModel,
    testing::Values("families/llama-9x3x64-tied", "families/llama-8x1x128-llama3-biases",
                    "families/llama-5x5x80-linear", "families/llama-8x2x16-dynamic",
                    "families/mistral-4x2x96-window", "families/qwen2-6x3x20-yarn-tied",
                    "families/qwen3-8x2x128-tied", "families/qwen3-3x3x64",
                    "families/opt-3x3x64-tied", "families/opt-4x4x24-gelu-without-biases"),
    name_of_model);
INSTANTIATE_TEST_SUITE_P(Quantized, FamilyModel,
                         testing::Values("quantized/gptq-g32", "quantized/gptq-v2-rows-sym",
                                         "quantized/gptq-8bit-g64", "quantized/gptq-sym-g128",
                                         "quantized/awq-g64", "quantized/ct-w4a16-g128",
                                         "quantized/ct-w4a16-g32-asym", "quantized/ct-some-left",
                                         "quantized/ct-w8a16-rows", "quantized/ct-w8a8-rows-asym",
                                         "quantized/ct-float8-rows", "quantized/fp8-blocks",
                                         "quantized/fp8-tensor"),
                         name_of_model);

}  // namespace
}  // namespace zi::test
