#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine_harness.h"
#include "sanitized.h"

namespace zi::test {

/// A model of the test's data, and how it is run.
struct ModelCase {
  std::string name;
  std::string model;
  DType dtype;
  WeightChoice format = WeightChoice::kStored;
  bool every_tier = false;
};

const ModelCase kModelCases[] = {
    {"bloom_float32", "bloom-kjv", DType::kFloat32, WeightChoice::kStored, !kSanitized},
    {"bloom_bfloat16", "bloom-kjv", DType::kBFloat16},
    {"bloom_int8", "bloom-kjv", DType::kFloat32, WeightChoice::kInt8},
    {"bloom_int4", "bloom-kjv", DType::kBFloat16, WeightChoice::kInt4, true},
    {"llama_gated", "families/llama-9x3x64-tied", DType::kFloat32, WeightChoice::kStored, true},
    {"llama_biases", "families/llama-8x1x128-llama3-biases", DType::kBFloat16},
    {"llama_odd", "families/llama-5x5x80-linear", DType::kFloat32, WeightChoice::kInt8},
    {"mistral", "families/mistral-4x2x96-window", DType::kBFloat16},
    {"qwen2", "families/qwen2-6x3x20-yarn-tied", DType::kFloat32},
    {"qwen3", "families/qwen3-3x3x64", DType::kFloat32},
    {"opt", "families/opt-3x3x64-tied", DType::kFloat32, WeightChoice::kStored, true},
    {"opt_without_biases", "families/opt-4x4x24-gelu-without-biases", DType::kBFloat16}};

/// Those of these names; throws for a name that none has.
inline std::vector<ModelCase> model_cases(const std::vector<std::string>& names) {
  std::vector<ModelCase> some;
  for (const std::string& name : names) {
    const auto found = std::ranges::find(kModelCases, name, &ModelCase::name);
    if (found == std::end(kModelCases)) throw std::invalid_argument("no model case " + name);
    some.push_back(*found);
  }
  return some;
}

/// All; under a sanitizer each family, type and format once, and every tier for stored and for
/// packed weights.
inline std::vector<ModelCase> model_cases_of_this_build() {
  if (!kSanitized) return {std::begin(kModelCases), std::end(kModelCases)};
  return model_cases({"bloom_float32", "bloom_int4", "llama_gated", "llama_odd", "mistral", "qwen2",
                      "qwen3", "opt"});
}

inline void PrintTo(const ModelCase& c, std::ostream* out) { *out << c.name; }

/// Runs of one of them against each other, by the ranks that mpirun started.
class ModelRuns : public testing::TestWithParam<ModelCase> {
 protected:
  void SetUp() override {
    if (const std::string why = missing_backend(model()); !why.empty()) GTEST_SKIP() << why;
  }
  static std::string model() { return data_path(GetParam().model); }

  /// Prompts of several lengths, of ids that every model of the data has, with unequal ends.
  static std::vector<nlohmann::json> prompts(std::size_t count) {
    std::vector<nlohmann::json> all;
    for (std::size_t i = 0; i < count; ++i) {
      std::vector<std::int32_t> ids;
      for (std::size_t n = 0; n < 1 + i * 7 % 23; ++n) {
        ids.push_back(static_cast<std::int32_t>(10 + (i * 31 + n * 17) % 80));
      }
      all.push_back({{"prompt_ids", ids}, {"max_new_tokens", 1 + i * 5 % 9}});
    }
    return all;
  }

  RunConfig config(Travel travel) const {
    RunConfig config = test_config(model());
    config.compute_dtype = GetParam().dtype;
    config.weight_format = GetParam().format;
    config.travel = travel;
    config.batch_size = {3};
    config.ignore_eos = true;
    return config;
  }

  /// Collective.
  Played play(const RunConfig& config, const std::vector<nlohmann::json>& prompts,
              const Decided& decided = {}) {
    const std::string path = folder_.path() + "/prompts.jsonl";
    if (world().rank() == 0) {
      std::ofstream out(path);
      for (const nlohmann::json& prompt : prompts) out << prompt.dump() << "\n";
    }
    world().barrier();
    const auto fail = [](const std::string& message) { ADD_FAILURE() << message; };
    const auto source = world().rank() == 0 ? prompts_from_jsonl(path, fail) : nullptr;
    return test::play(config, source.get(), decided);
  }

  /// On rank 0: as many results, with the same logits.
  void expect_same(const Played& a, const Played& b, const std::string& what) {
    if (world().rank() != 0) return;
    ASSERT_EQ(a.results.size(), b.results.size()) << what;
    if (exact_bits()) return expect_same_bits(a.logits, b.logits, what);
    const float bound =
        GetParam().dtype == DType::kFloat32 ? 1e-3f : 0.4f;  // as in engine_mpi_test
    std::map<std::uint64_t, std::uint64_t> first;
    for (const auto& [key, row] : a.logits) first.try_emplace(key.first, key.second);
    for (const auto& [prompt, position] : first) {
      const auto& x = a.logits.at({prompt, position});
      const auto& y = b.logits.at({prompt, position});
      for (std::size_t k = 0; k < x.size(); ++k) ASSERT_NEAR(x[k], y[k], bound) << what;
    }
  }

  std::size_t shard_bytes() const {
    std::size_t bytes = 0;
    for (const auto& file : std::filesystem::directory_iterator(model())) {
      if (file.path().extension() == ".safetensors") bytes += file.file_size();
    }
    return bytes / 8 / static_cast<std::size_t>(world().size());
  }

  SharedFolder folder_;
};

}  // namespace zi::test
