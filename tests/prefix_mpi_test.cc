// Runs in which prompts that begin alike share pages, against runs in which each is computed from
// its first token on, for the ranks that mpirun started: the same bits on the CPU.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "engine_harness.h"
#include "sanitized.h"

namespace zi::test {
namespace {

using nlohmann::json;
using Ids = std::vector<std::int32_t>;

/// Collective. Sums of all ranks.
struct Totals {
  std::int64_t prompt_rows = 0;
  std::int64_t cached_tokens = 0;
  std::int64_t preemptions = 0;
};

Totals totals_of(const GenerationStats& mine) {
  Totals all;
  for (const Totals& rank :
       world().all_gather(Totals{mine.prompt_rows, mine.cached_tokens, mine.preemptions})) {
    all.prompt_rows += rank.prompt_rows;
    all.cached_tokens += rank.cached_tokens;
    all.preemptions += rank.preemptions;
  }
  return all;
}

const std::string kModel = data_path("bloom-kjv");

constexpr std::uint32_t kSeeds = ZI_SEEDS;

class PrefixSharing : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = missing_backend(kModel); !why.empty()) GTEST_SKIP() << why;
    std::ifstream file(kModel + "/score.json");
    text_ = json::parse(file).at("ids").get<Ids>();
  }

  static RunConfig config(DType dtype = DType::kFloat32) {
    RunConfig config = test_config(kModel);
    config.compute_dtype = dtype;
    config.ignore_eos = true;
    return config;
  }
  /// Collective. A shape for random weights: attention over 2,000 tokens takes its time.
  std::string small_model() const {
    if (world().rank() == 0) {
      std::ofstream(folder_.path() + "/config.json")
          << json{{"architectures", {"BloomForCausalLM"}},
                  {"model_type", "bloom"},
                  {"n_layer", 2},
                  {"hidden_size", 64},
                  {"n_head", 1},
                  {"vocab_size", 4096}};
    }
    world().barrier();
    return folder_.path();
  }
  /// Bytes of so many pages: 6 layers, 5 heads of 64, K and V.
  static std::size_t pages(std::size_t count, DType dtype) {
    return count * 6 * 2 * 320 * kKvPageTokens * size_of(dtype);
  }

  Ids part(std::size_t first, std::size_t count) const {
    return {text_.begin() + static_cast<std::ptrdiff_t>(first),
            text_.begin() + static_cast<std::ptrdiff_t>(first + count)};
  }

  /// Beginnings of earlier prompts of any length, and some ids of the text.
  std::vector<json> random_prompts(std::size_t count, std::uint32_t seed) const {
    std::mt19937 random(seed);
    std::vector<json> lines;
    std::vector<Ids> earlier;
    for (std::size_t i = 0; i < count; ++i) {
      Ids ids;
      if (!earlier.empty() && random() % 5 != 0) {
        ids = earlier[random() % earlier.size()];
        ids.resize(1 + random() % ids.size());
      }
      if (ids.empty() || (ids.size() < 100 && random() % 4 != 0)) {
        const Ids own = part(random() % 4000, 1 + random() % 60);
        ids.insert(ids.end(), own.begin(), own.end());
      }
      earlier.push_back(ids);
      lines.push_back({{"prompt_ids", ids}, {"max_new_tokens", 1 + random() % 24}});
    }
    return lines;
  }

  /// Collective.
  Played play(RunConfig config, const std::vector<json>& prompts, bool share) {
    config.no_prefix_sharing = !share;
    const std::string path = folder_.path() + "/prompts.jsonl";
    if (world().rank() == 0) {
      std::ofstream out(path);
      for (const json& prompt : prompts) out << prompt.dump() << "\n";
    }
    world().barrier();
    const auto fail = [](const std::string& message) { ADD_FAILURE() << message; };
    const auto source = world().rank() == 0 ? prompts_from_jsonl(path, fail) : nullptr;
    return test::play(config, source.get());
  }

  /// On rank 0: as many results, with the same logits; on a GPU those of the first new token,
  /// within rounding.
  static void expect_same(const Played& apart, const Played& shared, DType dtype,
                          const std::string& what) {
    if (world().rank() != 0) return;
    ASSERT_EQ(apart.results.size(), shared.results.size()) << what;
    if (exact_bits()) {
      expect_same_bits(apart.logits, shared.logits, what);
      std::map<std::uint64_t, const Result*> answers;
      for (const Result& r : apart.results) answers[r.index] = &r;
      for (const Result& r : shared.results) {
        EXPECT_EQ(r.token_ids, answers.at(r.index)->token_ids) << what;
        EXPECT_EQ(r.to_json().substr(r.to_json().find("prompt")),
                  answers.at(r.index)->to_json().substr(r.to_json().find("prompt")));
      }
      return;
    }
    const float bound = dtype == DType::kFloat32 ? 1e-3f : 0.4f;  // as in engine_mpi_test
    std::map<std::uint64_t, std::uint64_t> first;
    for (const auto& [key, row] : apart.logits) first.try_emplace(key.first, key.second);
    for (const auto& [prompt, position] : first) {
      const auto& x = apart.logits.at({prompt, position});
      const auto& y = shared.logits.at({prompt, position});
      for (std::size_t k = 0; k < x.size(); ++k) ASSERT_NEAR(x[k], y[k], bound) << what;
    }
  }

  Ids text_;  // that the model knows
  SharedFolder folder_;
};

TEST_F(PrefixSharing, GivesTheBitsOfPromptsComputedApartWithFewPagesAndSmallPasses) {
  std::int64_t cached = 0;
  std::int64_t preempted = 0;
  for (std::uint32_t seed = 0; seed < kSeeds; ++seed) {
    const DType dtype = seed % 2 == 0 ? DType::kFloat32 : DType::kBFloat16;
    const auto prompts = random_prompts(24, seed);
    RunConfig roomy = config(dtype);
    roomy.batch_size = {8};
    const Played apart = play(roomy, prompts, false);
    EXPECT_EQ(totals_of(apart.outcome.stats).cached_tokens, 0);
    RunConfig tight = config(dtype);
    tight.batch_size = {7 - seed % 7};
    tight.max_pass_tokens = std::array{7, 24, 100}[seed % 3];
    tight.kv_budget = pages(std::array{11, 14, 20, 60}[seed % 4], dtype);
    const Played shared = play(tight, prompts, true);
    expect_same(apart, shared, dtype, fmt::format("seed {}", seed));
    const Totals totals = totals_of(shared.outcome.stats);
    cached += totals.cached_tokens;
    preempted += totals.preemptions;
  }
  EXPECT_GT(cached, 50 * kSeeds);
  EXPECT_GT(preempted, 0);
  if (world().rank() != 0) return;
  fmt::print("[          ] {} prompt tokens taken over, {} preemptions\n", cached, preempted);
}

TEST_F(PrefixSharing, ManyPromptsComputeTheirBeginningOfTwoThousandTokensOnceOnEachRank) {
  constexpr std::size_t kMany = kSanitized ? 16 : 64;
  std::vector<json> prompts;
  const Ids beginning = part(0, 2000);
  std::int64_t tokens = 0;
  for (std::size_t i = 0; i < kMany; ++i) {
    Ids ids = beginning;
    const Ids own = part(2100 + 40 * i, 5 + i % 30);
    ids.insert(ids.end(), own.begin(), own.end());
    tokens += std::ssize(ids);
    prompts.push_back({{"prompt_ids", ids}, {"max_new_tokens", 4}});
  }
  RunConfig run = config(DType::kBFloat16);
  run.model = small_model();
  run.load_format = LoadFormat::kDummy;
  run.batch_size = {kMany / 4};  // more prompts than lanes: each rank has some
  const Played apart = play(run, prompts, false);
  const Played shared = play(run, prompts, true);
  expect_same(apart, shared, DType::kBFloat16, "many prompts");
  const Totals without = totals_of(apart.outcome.stats);
  const Totals with = totals_of(shared.outcome.stats);
  EXPECT_EQ(without.prompt_rows, tokens);
  EXPECT_EQ(with.prompt_rows + with.cached_tokens, tokens);
  // Each rank computes the beginning once, and of each prompt what is its own.
  EXPECT_EQ(with.prompt_rows, 2000 * world().size() + (tokens - std::int64_t{kMany} * 2000));
  EXPECT_GE(without.prompt_rows, 5 * with.prompt_rows);
  if (world().rank() != 0) return;
  std::int64_t cached = 0;
  for (const Result& r : shared.results) cached += r.cached_tokens;
  EXPECT_EQ(cached, with.cached_tokens);
  fmt::print(
      "[          ] prompt rows: {} apart, {} shared; passes: {} and {}; seconds: {:.2f} and "
      "{:.2f}\n",
      without.prompt_rows, with.prompt_rows, apart.outcome.stats.passes,
      shared.outcome.stats.passes, apart.outcome.stats.seconds, shared.outcome.stats.seconds);
}

TEST_F(PrefixSharing, ScoresAreOfEveryTokenAndTheSame) {
  RunConfig score = config();
  score.score = true;
  score.batch_size = {4};
  score.max_pass_tokens = 50;
  const std::vector<json> prompts = random_prompts(12, 5);
  const Played apart = play(score, prompts, false);
  const Played shared = play(score, prompts, true);
  EXPECT_EQ(shared.outcome.stats.cached_tokens, 0);
  EXPECT_EQ(totals_of(shared.outcome.stats).prompt_rows,
            totals_of(apart.outcome.stats).prompt_rows);
  if (world().rank() != 0) return;
  std::map<std::uint64_t, const Result*> scores;
  for (const Result& r : apart.results) scores[r.index] = &r;
  EXPECT_EQ(shared.results.size(), prompts.size());
  for (const Result& r : shared.results) {
    EXPECT_EQ(r.token_logprobs->size(), prompts[r.index]["prompt_ids"].size() - 1);
    if (!exact_bits()) continue;
    EXPECT_EQ(r.token_logprobs, scores.at(r.index)->token_logprobs);
  }
}

}  // namespace
}  // namespace zi::test
