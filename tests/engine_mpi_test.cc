// The whole engine on the bundled model against the reference's outputs, for the ranks that mpirun
// started.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>

#include "engine_harness.h"
#include "nan_checkpoint.h"
#include "sanitized.h"
#include "zero_infer/error.h"

namespace zi::test {
namespace {

const std::string kModel = data_path("bloom-kjv");

RunConfig test_config() { return test::test_config(kModel); }

/// A test that needs the backend.
struct EngineTest : testing::Test {
  void SetUp() override {
    if (const std::string why = missing_backend(kModel); !why.empty()) GTEST_SKIP() << why;
  }
};

/// The reference went on for so many tokens.
constexpr std::int64_t kReferenceTokens = 48;

/// For runs that must equal a long one in every bit: each sequence goes past the end of a page.
std::int64_t short_run() { return exact_bits() ? 20 : kReferenceTokens; }

struct Golden {
  std::string prompt;
  std::vector<std::int32_t> greedy_ids;
  std::vector<std::int32_t> top5_ids;
  std::vector<float> top5_logits;
  double min_margin;
  std::uint64_t prompt_tokens;
};

std::vector<Golden> read_golden() {
  std::ifstream file(kModel + "/golden.json");
  std::vector<Golden> out;
  for (const auto& entry : nlohmann::json::parse(file)) {
    const auto& f = entry.at("float32");
    out.push_back({f.at("prompt"), f.at("greedy_ids"), f.at("top5_ids"), f.at("top5_logits"),
                   f.at("min_margin"), f.at("prompt_ids").size()});
  }
  return out;
}

Played play(const std::vector<std::string>& prompts, const Placement& placement, DType dtype,
            std::int64_t batch, const std::string& folder,
            std::int64_t new_tokens = kReferenceTokens, std::int64_t pass_tokens = 512,
            std::optional<std::size_t> kv_budget = std::nullopt) {
  RunConfig config = placed(test_config(), placement, folder);
  config.prompt = prompts;
  config.compute_dtype = dtype;
  config.batch_size = {batch};
  config.max_new_tokens = new_tokens;
  config.max_pass_tokens = std::max(pass_tokens, batch);
  config.kv_budget = kv_budget;
  const auto source = prompts_from_flags(prompts);
  return test::play(config, source.get());
}

std::vector<std::string> texts(const std::vector<Golden>& golden) {
  std::vector<std::string> out;
  for (const Golden& g : golden) out.push_back(g.prompt);
  return out;
}

/// Blocks of the bundled model have 2.46 MB; a rank's shard 1/n of it.
std::vector<Placement> placements() {
  return test::placements(2'460'000 / static_cast<std::size_t>(world().size()) + 8192);
}

/// On rank 0: ids equal the reference's first ones where no two best logits nearly tie.
void expect_golden_ids(const Played& run, const std::vector<Golden>& golden, double margin,
                       const std::string& what, std::int64_t new_tokens = kReferenceTokens) {
  if (world().rank() != 0) return;
  ASSERT_EQ(run.results.size(), golden.size()) << what;
  std::vector<int> seen(golden.size(), 0);
  for (const Result& r : run.results) {
    ++seen[r.index];
    const Golden& g = golden[r.index];
    EXPECT_EQ(r.prompt, g.prompt);
    if (g.min_margin > margin) {
      EXPECT_EQ(r.finish_reason, "length");
      EXPECT_EQ(r.token_ids, std::vector(g.greedy_ids.begin(), g.greedy_ids.begin() + new_tokens))
          << what << ": " << g.prompt;
    }
  }
  for (int n : seen) EXPECT_EQ(n, 1) << what;
}

/// On rank 0: the errors of the first step's five best logits: their maximum for each prompt.
std::vector<double> first_step_errors(const Played& run, const std::vector<Golden>& golden) {
  std::vector<double> errors;
  for (std::size_t i = 0; i < golden.size(); ++i) {
    const std::vector<float>& row = run.logits.at({i, golden[i].prompt_tokens});
    double worst = 0;
    for (std::size_t k = 0; k < golden[i].top5_ids.size(); ++k) {
      const float got = row[static_cast<std::size_t>(golden[i].top5_ids[k])];
      worst = std::max(worst, static_cast<double>(std::abs(got - golden[i].top5_logits[k])));
    }
    errors.push_back(worst);
  }
  return errors;
}

/// Two runs that must not differ: in no bit on the CPU; on a GPU the logits of each first token may
/// differ by rounding (later ones hang on tokens that nearly tie).
void expect_same_logits(const Played& a, const Played& b, const std::vector<Golden>& golden,
                        DType dtype, const std::string& what) {
  if (world().rank() != 0) return;
  if (!exact_bits()) {
    // Logits of up to 20, 6 blocks of roundings of 2^-9 (bfloat16) or of 2^-24 and sums of 1280.
    const float bound = dtype == DType::kFloat32 ? 1e-3f : 0.4f;
    for (std::size_t i = 0; i < golden.size(); ++i) {
      const auto& x = a.logits.at({i, golden[i].prompt_tokens});
      const auto& y = b.logits.at({i, golden[i].prompt_tokens});
      float worst = 0;
      for (std::size_t k = 0; k < x.size(); ++k) worst = std::max(worst, std::abs(x[k] - y[k]));
      EXPECT_LE(worst, bound) << what << ": prompt " << i;
    }
    return;
  }
  expect_same_bits(a.logits, b.logits, what);
}

/// What a run gave for the first tokens of its first prompts.
Played first_of(const Played& run, const std::vector<Golden>& golden, std::int64_t new_tokens) {
  const std::size_t prompts = golden.size();
  Played some = run;
  std::erase_if(some.logits, [&](const auto& entry) {
    const auto [prompt, position] = entry.first;
    return prompt >= prompts ||
           position >= golden[prompt].prompt_tokens + static_cast<std::uint64_t>(new_tokens);
  });
  std::erase_if(some.results, [&](const Result& r) { return r.index >= prompts; });
  return some;
}

class EngineOnTheBundledModel : public EngineTest, public testing::WithParamInterface<DType> {};

TEST_P(EngineOnTheBundledModel, MatchesTheReferenceOnEveryTierAndBatchSizeWithTheSameBits) {
  const auto golden = read_golden();
  const auto prompts = texts(golden);
  const SharedFolder folder;
  const bool exact = GetParam() == DType::kFloat32;
  const Played base = play(prompts, kDeviceOnly, GetParam(), 16, folder.path());
  expect_golden_ids(base, golden, exact ? 0.01 : 0.3, "device, 16 lanes");
  if (world().rank() == 0) {
    const auto errors = first_step_errors(base, golden);
    double sum = 0;
    for (double e : errors) {
      if (exact) {
        EXPECT_LE(e, 0.002);
      }
      sum += e;
    }
    const double mean = sum / static_cast<double>(errors.size());
    EXPECT_LE(mean, 0.1) << "the reference's own bfloat16 run: 0.112";
    fmt::print("[          ] {}: worst of the five best logits, averaged: {:.5f}\n",
               name_of(GetParam()), mean);
  }
  for (const Placement& p : placements()) {
    for (std::int64_t batch : {1, 3, 16}) {
      const std::string what = fmt::format("{}, {} lanes", p.name, batch);
      // One lane takes its prompts one after the other: two a rank tell as much as all.
      const auto all = golden.size();
      const auto count =
          batch > 1 ? all : std::min(all, 2 * static_cast<std::size_t>(world().size()));
      const std::vector<Golden> some(golden.begin(), golden.begin() + static_cast<long>(count));
      const std::int64_t tokens = short_run();
      const Played other = play(texts(some), p, GetParam(), batch, folder.path(), tokens);
      expect_golden_ids(other, some, exact ? 0.01 : 0.3, what, tokens);
      expect_same_logits(first_of(base, some, tokens), other, some, GetParam(), what);
    }
  }
}

TEST_P(EngineOnTheBundledModel, MatchesTheReferenceWithResidentShards) {
  const auto golden = read_golden();
  const SharedFolder folder;
  const bool exact = GetParam() == DType::kFloat32;
  const Played run = play(texts(golden), kDeviceOnly, GetParam(), 3, folder.path());
  expect_golden_ids(run, golden, exact ? 0.01 : 0.3, "device, 3 lanes");
}

TEST_P(EngineOnTheBundledModel, GivesTheSameBitsOneByOneInSmallChunksAndWhenPagesRunOut) {
  const auto golden = read_golden();
  const auto prompts = texts(golden);
  const SharedFolder folder;
  const Played base = play(prompts, kDeviceOnly, GetParam(), 16, folder.path());
  const std::int64_t tokens = short_run();
  const Played chunked = play(prompts, kDeviceOnly, GetParam(), 4, folder.path(), tokens, 5);
  const Played start = first_of(base, golden, tokens);
  expect_same_logits(start, chunked, golden, GetParam(), "chunks of 5 rows");

  // 6 layers, 5 heads of 64, K and V: one page of 16 tokens.
  const std::size_t page = 6 * 2 * 320 * kKvPageTokens * size_of(GetParam());
  const Played tight =
      play(prompts, kDeviceOnly, GetParam(), 16, folder.path(), kReferenceTokens, 64, 7 * page);
  expect_same_logits(base, tight, golden, GetParam(), "seven pages");
  if (world().size() == 1) {
    EXPECT_GT(tight.outcome.stats.preemptions, 0);
  }

  Played one_by_one;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const Played single = play({prompts[i]}, kDeviceOnly, GetParam(), 1, folder.path(), tokens);
    for (const auto& [key, row] : single.logits) one_by_one.logits[{i, key.second}] = row;
  }
  expect_same_logits(start, one_by_one, golden, GetParam(), "one by one");
}

INSTANTIATE_TEST_SUITE_P(ComputeTypes, EngineOnTheBundledModel,
                         testing::Values(DType::kFloat32, DType::kBFloat16),
                         [](const auto& info) { return std::string(name_of(info.param)); });

/// Collective. What a run of the bundled model makes of a prompt file that rank 0 wrote: on rank 0.
std::vector<Result> results_of(const std::string& path, RunConfig config) {
  world().barrier();
  Engine engine(world(), make_backend(world(), config), config);
  const auto fail = [](const std::string& message) { ADD_FAILURE() << message; };
  const auto source = world().rank() == 0 ? prompts_from_jsonl(path, fail) : nullptr;
  MemorySink sink;
  engine.generate({.source = source.get(),
                   .sink = &sink,
                   .lanes = config.batch_size.front(),
                   .options = engine.generation_options()});
  return std::move(sink.results);
}

/// Mean negative log-likelihood of the windows of score.json.
double mean_nll(DType dtype) {
  std::ifstream file(kModel + "/score.json");
  const auto score = nlohmann::json::parse(file);
  const std::vector<std::int32_t> ids = score.at("ids");
  const std::size_t window = score.at("window");
  const SharedFolder folder;
  const std::string path = folder.path() + "/windows.jsonl";
  if (world().rank() == 0) {
    std::ofstream out(path);
    for (std::size_t at = 0; at < ids.size(); at += window) {
      out << nlohmann::json{{"prompt_ids",
                             std::vector<std::int32_t>(
                                 ids.begin() + static_cast<std::ptrdiff_t>(at),
                                 ids.begin() + static_cast<std::ptrdiff_t>(at + window))}}
                 .dump()
          << "\n";
    }
  }
  RunConfig config = test_config();
  config.score = true;
  config.compute_dtype = dtype;
  config.batch_size = {3};
  config.max_pass_tokens = 200;
  const std::vector<Result> results = results_of(path, config);
  double sum = 0;
  std::size_t count = 0;
  for (const Result& r : results) {
    EXPECT_EQ(r.token_logprobs->size(), window - 1);
    for (float logprob : *r.token_logprobs) sum -= logprob;
    count += r.token_logprobs->size();
  }
  if (world().rank() == 0) {
    EXPECT_EQ(results.size(), ids.size() / window);
  }
  return sum / static_cast<double>(std::max<std::size_t>(count, 1));
}

using Score = EngineTest;
TEST_F(Score, GivesTheReferencesLikelihood) {
  constexpr double kReference = 0.05742813171472568;
  const double exact = mean_nll(DType::kFloat32);
  const double narrow = mean_nll(DType::kBFloat16);
  if (world().rank() != 0) return;
  EXPECT_NEAR(exact, kReference, 0.002 * kReference);
  EXPECT_NEAR(narrow, kReference, 0.05 * kReference);
  fmt::print("[          ] mean NLL: float32 {:.6f}, bfloat16 {:.6f}\n", exact, narrow);
}

/// A token that no prompt and no answer of the reference holds.
constexpr std::int32_t kNanToken = 5;

/// Collective. The bundled model with NaN for that token.
std::string nan_model(const SharedFolder& folder) {
  if (world().rank() == 0) make_nan_checkpoint(kModel, folder.path() + "/model", kNanToken);
  world().barrier();
  return folder.path() + "/model";
}

/// Lines of the reference's prompts, after each one of the same length with a token that gives NaN.
/// Collective; returns the path.
std::string prompts_with_nan(const SharedFolder& folder, const std::vector<Golden>& golden) {
  const std::string path = folder.path() + "/nan.jsonl";
  if (world().rank() == 0) {
    std::ofstream out(path);
    for (const Golden& g : golden) {
      std::vector<std::int32_t> ids(40, g.greedy_ids.front());  // of several pages
      ids[2] = kNanToken;
      out << nlohmann::json{{"prompt", g.prompt}, {"id", g.prompt}}.dump() << "\n"
          << nlohmann::json{{"prompt_ids", ids}}.dump() << "\n";
    }
  }
  world().barrier();
  return path;
}

using NotFinite = EngineTest;
TEST_F(NotFinite, PromptsThatGiveNanFailAndTheOthersOnTheirPagesKeepTheirBits) {
  const SharedFolder folder;
  const auto golden = read_golden();
  RunConfig config = test_config();
  config.model = nan_model(folder);
  config.max_new_tokens = 12;
  config.batch_size = {3};
  config.max_pass_tokens = 16;  // prompts in chunks: rows of both kinds share passes
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    config.compute_dtype = dtype;
    // Nine pages: each is soon used again.
    config.kv_budget = 9 * 6 * 2 * 320 * kKvPageTokens * size_of(dtype);
    const auto run = [&](std::unique_ptr<PromptSource> source) {
      return test::play(config, source.get());
    };
    const auto fail = [](const std::string& message) { ADD_FAILURE() << message; };
    const std::string path = prompts_with_nan(folder, golden);
    const Played mixed = run(world().rank() == 0 ? prompts_from_jsonl(path, fail) : nullptr);
    EXPECT_EQ(mixed.outcome.failed.not_finite, std::ssize(golden)) << "known on all ranks";
    EXPECT_EQ(mixed.outcome.failed.refused, 0);
    const Played alone = run(prompts_from_flags(texts(golden)));
    if (world().rank() != 0) continue;
    EXPECT_EQ(mixed.results.size(), golden.size());
    for (const Result& r : mixed.results) {
      ASSERT_EQ(r.index % 2, 0u) << "of a prompt that fails";
      const Golden& g = golden[r.index / 2];
      if (g.min_margin > (dtype == DType::kFloat32 ? 0.01 : 0.3)) {
        EXPECT_TRUE(std::ranges::equal(r.token_ids, std::span(g.greedy_ids).first(12))) << g.prompt;
      }
    }
    if (!exact_bits()) continue;
    for (const auto& [key, row] : alone.logits) {
      const auto other = mixed.logits.find({2 * key.first, key.second});
      ASSERT_NE(other, mixed.logits.end());
      ASSERT_EQ(0, std::memcmp(row.data(), other->second.data(), row.size() * sizeof(float)))
          << name_of(dtype) << ": prompt " << key.first << ", position " << key.second;
    }
  }
}

TEST_F(NotFinite, PromptsThatGiveNanAreNotScoredAndTheOthersAre) {
  const SharedFolder folder;
  const auto golden = read_golden();
  RunConfig config = test_config();
  config.model = nan_model(folder);
  config.score = true;
  config.batch_size = {3};
  config.max_pass_tokens = 16;
  const std::vector<Result> results = results_of(prompts_with_nan(folder, golden), config);
  if (world().rank() != 0) return;
  EXPECT_EQ(results.size(), golden.size());
  for (const Result& r : results) {
    EXPECT_EQ(r.index % 2, 0u);
    for (const float logprob : *r.token_logprobs) EXPECT_TRUE(std::isfinite(logprob));
  }
}

constexpr std::size_t kMany = test::kSanitized ? 16 : 200;

using Work = EngineTest;
TEST_F(Work, ManyPromptsOfVeryDifferentLengthsAllEndOnceAndOnePromptLeavesTheOthersIdle) {
  const SharedFolder folder;
  const auto golden = read_golden();
  for (const std::size_t count : {std::size_t{1}, kMany}) {
    const std::string path = folder.path() + "/work.jsonl";
    if (world().rank() == 0) {
      std::ofstream out(path);
      for (std::size_t i = 0; i < count; ++i) {
        std::string prompt;
        for (std::size_t n = 0; n <= i % 11; ++n) prompt += golden[(i + n) % 12].prompt + " ";
        out << nlohmann::json{{"prompt", prompt}, {"max_new_tokens", 1 + (i * 37) % 61}}.dump()
            << "\n";
      }
    }
    RunConfig config = test_config();
    config.batch_size = {3};
    config.max_pass_tokens = 40;
    const std::vector<Result> results = results_of(path, config);
    if (world().rank() != 0) continue;
    std::map<std::uint64_t, int> seen;
    std::map<int, int> by_rank;
    for (const Result& r : results) {
      ++seen[r.index];
      ++by_rank[r.rank];
      if (r.finish_reason == "length") {
        EXPECT_EQ(r.token_ids.size(), 1 + (r.index * 37) % 61);
      }
    }
    EXPECT_EQ(seen.size(), count);
    EXPECT_EQ(results.size(), count);
    if (count > 1) {
      EXPECT_EQ(static_cast<int>(by_rank.size()), world().size());
    }
  }
}

}  // namespace
}  // namespace zi::test
