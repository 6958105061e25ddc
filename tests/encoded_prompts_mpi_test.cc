// Prompts that are cut into tokens while passes run, against prompts that are cut when a rank
// admits them, for the ranks that mpirun started.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine_harness.h"

namespace zi::test {
namespace {

const std::string kModel = data_path("bloom-kjv");

constexpr std::size_t kPrompts = 40;

/// Some by their tokens, others by their bytes alone.
bool too_long(std::size_t index) { return index % 7 == 3; }

/// On rank 0.
void write_prompts(const std::string& path) {
  std::ofstream out(path);
  for (std::size_t i = 0; i < kPrompts; ++i) {
    std::string text = fmt::format("{} In the beginning", i);
    for (std::size_t more = 0; more < i % 9 * 8; ++more) text += " God created";
    if (too_long(i)) text.append(i % 2 == 0 ? 2000 : 200'000, '1');
    out << nlohmann::json{{"prompt", text}}.dump() << "\n";
  }
}

struct Ran {
  std::vector<Result> results;  // in order, on rank 0
  std::int64_t refused = 0;     // of all ranks
};

/// Collective.
Ran run(const std::string& path, bool encode_ahead) {
  RunConfig config = test_config(kModel);
  config.compute_dtype = DType::kFloat32;
  config.batch_size = {2};  // far fewer lanes than prompts: most wait for one
  config.max_new_tokens = 3;
  config.max_pass_tokens = 64;
  config.kv_budget = 40 * 6 * 2 * 320 * kKvPageTokens * size_of(DType::kFloat32);
  config.logprobs = 2;
  Engine engine(world(), make_backend(world(), config), config);
  const auto fail = [](const std::string& message) { ADD_FAILURE() << message; };
  const auto source = world().rank() == 0 ? prompts_from_jsonl(path, fail) : nullptr;
  MemorySink sink;
  const Engine::Outcome outcome = engine.generate({.source = source.get(),
                                                   .sink = &sink,
                                                   .lanes = config.batch_size.front(),
                                                   .options = engine.generation_options(),
                                                   .encode_ahead = encode_ahead});
  std::ranges::sort(sink.results, {}, &Result::index);
  return {std::move(sink.results), outcome.failed.refused};
}

TEST(EncodedPrompts, HaveTheResultsOfThoseThatAreCutWhenTheyAreAdmitted) {
  if (const std::string why = missing_backend(kModel); !why.empty()) GTEST_SKIP() << why;
  const SharedFolder folder;
  const std::string path = folder.path() + "/prompts.jsonl";
  if (world().rank() == 0) write_prompts(path);
  const Ran ahead = run(path, true);
  const Ran in_time = run(path, false);
  EXPECT_EQ(ahead.refused, 6);
  EXPECT_EQ(in_time.refused, 6);
  if (world().rank() != 0) return;
  ASSERT_EQ(ahead.results.size(), kPrompts - 6);
  ASSERT_EQ(in_time.results.size(), kPrompts - 6);
  for (std::size_t i = 0; i < ahead.results.size(); ++i) {
    const Result& a = ahead.results[i];
    const Result& b = in_time.results[i];
    EXPECT_FALSE(too_long(a.index));
    EXPECT_EQ(a.index, b.index);
    EXPECT_EQ(a.prompt, b.prompt);
    EXPECT_EQ(a.prompt_ids, b.prompt_ids);
    EXPECT_EQ(a.prompt_tokens, b.prompt_tokens);
    if (!exact_bits()) continue;
    EXPECT_EQ(a.token_ids, b.token_ids) << a.prompt;
    ASSERT_EQ(a.logprobs->size(), b.logprobs->size());
    for (std::size_t t = 0; t < a.logprobs->size(); ++t) {
      EXPECT_EQ(a.logprobs->at(t).top, b.logprobs->at(t).top);
    }
  }
}

}  // namespace
}  // namespace zi::test
