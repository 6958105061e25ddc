// A trained model, SmolLM2-135M-Instruct, against the reference's outputs (data/make_smollm2.py),
// for the ranks that mpirun started. The checkpoint is what tests/reference_packages.sh makes.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "chat/chat_template.h"
#include "engine_harness.h"
#include "text/prompt_line.h"
#include "text/tokenizer.h"

namespace zi::test {
namespace {

using Ids = std::vector<std::int32_t>;

const std::string kModel = std::string(ZI_REFERENCE_PACKAGES) + "/smollm2";

struct Golden {
  std::string line;  // of a prompt file: a text or messages
  std::string rendered;
  Ids prompt_ids, greedy_ids;
  std::size_t sure;  // so many of them have no second logit within 0.01
  std::string text;
  std::vector<float> best_logits, margins;  // of each step; over the second logit
  std::size_t same_in_bfloat16;             // so many ids does the reference's own run share
  Ids top5_ids;                             // of the first step
  std::vector<float> top5_logits, top5_bfloat16;
};

/// All that the reference has, of up to 64; fewer on a CPU, where they take long.
std::int64_t new_tokens() { return exact_bits() ? 16 : 64; }

struct Scored {
  std::string text;
  Ids ids;
  double float32, bfloat16;  // mean negative log-likelihoods
};

nlohmann::json read_data() {
  std::ifstream file(data_path("smollm2.json"));
  return nlohmann::json::parse(file);
}

std::vector<Golden> read_golden() {
  std::vector<Golden> out;
  const auto data = read_data();
  for (const auto& g : data.at("cases")) {
    const bool chat = g.contains("messages");
    const std::string key = chat ? "messages" : "prompt";
    out.push_back({nlohmann::json{{key, g.at(key)}}.dump(), g.at(chat ? "rendered" : "prompt"),
                   g.at("prompt_ids"), g.at("greedy_ids"), g.at("sure"), g.at("text"),
                   g.at("best_logits"), g.at("margins"), g.at("same_in_bfloat16"), g.at("top5_ids"),
                   g.at("top5_logits"), g.at("top5_bfloat16")});
  }
  return out;
}

Scored read_scored() {
  const auto data = read_data();
  const auto& s = data.at("score");
  return {s.at("text"), s.at("ids"), s.at("mean_nll_float32"), s.at("mean_nll_bfloat16")};
}

class SmolLm2 : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(kModel + "/done-1")) {
      GTEST_SKIP() << "no " << kModel << ": run tests/reference_packages.sh build-reference";
    }
    if (const std::string why = missing_backend(kModel); !why.empty()) GTEST_SKIP() << why;
    golden_ = read_golden();
    ASSERT_EQ(golden_.size(), 9u);
  }

  /// On rank 0; null elsewhere.
  std::unique_ptr<PromptSource> source(const std::vector<std::string>& lines) const {
    if (world().rank() != 0) return nullptr;
    const std::string path = folder_.path() + "/prompts.jsonl";
    std::ofstream out(path);
    for (const std::string& line : lines) out << line << "\n";
    out.close();
    const auto fail = [](const std::string& message) { ADD_FAILURE() << message; };
    return prompts_from_jsonl(path, fail, std::make_shared<CheckpointChat>(kModel));
  }

  /// Collective.
  Played play(const Placement& placement, DType dtype, std::size_t prompts, std::int64_t tokens) {
    RunConfig config = placed(test_config(kModel), placement, folder_.path());
    config.compute_dtype = dtype;
    config.batch_size = {8};
    config.max_new_tokens = tokens;
    std::vector<std::string> lines;
    for (std::size_t i = 0; i < prompts; ++i) lines.push_back(golden_[i].line);
    const auto prompt_source = source(lines);
    return test::play(config, prompt_source.get());
  }

  /// Collective; on rank 0 the mean negative log-likelihood of the text.
  double mean_nll(DType dtype, const Ids& ids) {
    RunConfig config = test_config(kModel);
    config.score = true;
    config.compute_dtype = dtype;
    Engine engine(world(), make_backend(world(), config), config);
    const auto prompt_source = source({nlohmann::json{{"prompt_ids", ids}}.dump()});
    MemorySink sink;
    engine.generate(
        {.source = prompt_source.get(), .sink = &sink, .options = engine.generation_options()});
    if (world().rank() != 0) return 0;
    EXPECT_EQ(sink.results.size(), 1u);
    double sum = 0;
    for (const Result& r : sink.results) {
      EXPECT_EQ(r.token_logprobs->size(), ids.size() - 1);
      for (const float logprob : *r.token_logprobs) sum -= logprob;
    }
    return sum / static_cast<double>(ids.size() - 1);
  }

  /// On rank 0. All ids and texts are the reference's; but a first id that differs, and with it all
  /// that follow, where the reference's second logit was within `margin`. Returns how many ids are
  /// the reference's.
  std::size_t expect_ids(const Played& run, double margin) const {
    EXPECT_EQ(run.results.size(), golden_.size());
    std::size_t same = 0;
    for (const Result& r : run.results) {
      const Golden& g = golden_[r.index];
      const auto most = std::min(g.greedy_ids.size(), static_cast<std::size_t>(new_tokens()));
      const Ids wanted(g.greedy_ids.begin(), g.greedy_ids.begin() + static_cast<long>(most));
      const auto [got, want] = std::ranges::mismatch(r.token_ids, wanted);
      const auto at = static_cast<std::size_t>(want - wanted.begin());
      same += at;
      if (want != wanted.end()) {
        EXPECT_LE(g.margins[at], margin) << "prompt " << r.index << ", new token " << at;
      } else {
        EXPECT_EQ(r.token_ids.size(), most);
        EXPECT_TRUE(g.text.starts_with(r.text)) << r.text;
        if (most == g.greedy_ids.size()) {
          EXPECT_EQ(r.text, g.text);
        }
      }
    }
    return same;
  }

  /// On rank 0: the worst error of the first step's five best logits of a prompt.
  double first_step_error(const Played& run, std::size_t prompt) const {
    const Golden& g = golden_[prompt];
    const std::vector<float>& row = run.logits.at({prompt, g.prompt_ids.size()});
    double worst = 0;
    for (std::size_t k = 0; k < g.top5_ids.size(); ++k) {
      const float got = row[static_cast<std::size_t>(g.top5_ids[k])];
      worst = std::max(worst, static_cast<double>(std::abs(got - g.top5_logits[k])));
    }
    return worst;
  }

  std::vector<Golden> golden_;
  SharedFolder folder_;
};

TEST_F(SmolLm2, TextsAndChatsHaveTheReferencesIdsAndItsIdsTheReferencesText) {
  const auto tokenizer = Tokenizer::in_directory(kModel);
  ASSERT_TRUE(tokenizer);
  const CheckpointChat chat(kModel);
  for (const Golden& g : golden_) {
    const Prompt prompt = parse_prompt_line(g.line, &chat);
    EXPECT_EQ(prompt.text, g.rendered);
    EXPECT_EQ(tokenizer->encode(*prompt.text, !prompt.no_special_tokens), g.prompt_ids);
    EXPECT_EQ(tokenizer->decode(g.greedy_ids), g.text);
  }
  const Scored scored = read_scored();
  EXPECT_EQ(tokenizer->encode(scored.text), scored.ids);
  EXPECT_EQ(tokenizer->decode(scored.ids), scored.text);
}

TEST_F(SmolLm2, GivesTheReferencesGreedyTextsAndLogitsInFloat32) {
  const Played run = play(kDeviceOnly, DType::kFloat32, golden_.size(), new_tokens());
  if (world().rank() != 0) return;
  expect_ids(run, 0.01);
  double error = 0;
  for (std::size_t i = 0; i < golden_.size(); ++i) {
    const Golden& g = golden_[i];
    error = std::max(error, first_step_error(run, i));
    for (std::size_t step = 0;
         step < std::min<std::size_t>(g.sure, static_cast<std::size_t>(new_tokens())); ++step) {
      const float got = std::ranges::max(run.logits.at({i, g.prompt_ids.size() + step}));
      error = std::max(error, static_cast<double>(std::abs(got - g.best_logits[step])));
    }
  }
  EXPECT_LE(error, 2e-3);
  fmt::print("[          ] worst logit {:.2e}\n", error);
}

TEST_F(SmolLm2, InBfloat16LeavesTheReferencesTextsOnlyAtNearTiesAndIsAsNearAsItsOwnRunOrNearly) {
  const Played run = play(kDeviceOnly, DType::kBFloat16, golden_.size(), new_tokens());
  if (world().rank() != 0) return;
  // Twice the reference's own error of a logit, averaged: 0.25.
  const std::size_t same = expect_ids(run, 0.5);
  double ours = 0;
  double theirs = 0;
  std::size_t same_theirs = 0;
  for (std::size_t i = 0; i < golden_.size(); ++i) {
    const Golden& g = golden_[i];
    ours += first_step_error(run, i);
    double worst = 0;
    for (std::size_t k = 0; k < g.top5_ids.size(); ++k) {
      worst = std::max(worst, std::abs(static_cast<double>(g.top5_bfloat16[k] - g.top5_logits[k])));
    }
    theirs += worst;
    same_theirs += std::min(g.same_in_bfloat16, static_cast<std::size_t>(new_tokens()));
  }
  EXPECT_LE(ours, 1.25 * theirs);
  EXPECT_GE(2 * same, same_theirs);
  const auto prompts = static_cast<double>(golden_.size());
  fmt::print(
      "[          ] worst of five logits, averaged: {:.4f}, the reference's {:.4f}; "
      "{} ids as in float32, the reference's {}\n",
      ours / prompts, theirs / prompts, same, same_theirs);
}

TEST_F(SmolLm2, GivesTheReferencesLikelihoodOfAText) {
  const Scored scored = read_scored();
  const double exact = mean_nll(DType::kFloat32, scored.ids);
  const double narrow = mean_nll(DType::kBFloat16, scored.ids);
  if (world().rank() != 0) return;
  EXPECT_NEAR(exact, scored.float32, 0.002 * scored.float32);
  EXPECT_NEAR(narrow, scored.float32, 0.02 * scored.float32);
  fmt::print(
      "[          ] mean NLL: float32 {:.5f}, bfloat16 {:.5f}; the reference's {:.5f} {:.5f}\n",
      exact, narrow, scored.float32, scored.bfloat16);
}

TEST_F(SmolLm2, TwoRanksGiveTheSameBitsOnEveryTier) {
  if (!exact_bits()) GTEST_SKIP() << "a GPU's products depend on how many rows they have";
  if (world().size() != 2) GTEST_SKIP() << "for two ranks";
  const Played base = play(kDeviceOnly, DType::kFloat32, 2, 3);
  // The embedding has as many weights as eight of the 30 blocks.
  const std::size_t block = std::filesystem::file_size(kModel + "/model.safetensors") / 38;
  for (const Placement& p : placements(block / 2)) {
    if (p.name == "device") continue;
    expect_same_bits(base.logits, play(p, DType::kFloat32, 2, 3).logits, p.name);
  }
}

}  // namespace
}  // namespace zi::test
