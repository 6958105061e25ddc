// Prompts that have settings of their own, side by side in one job of the ranks that mpirun
// started: each is answered as in a job with its settings for all.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "engine_harness.h"
#include "text/prompt_source.h"

namespace zi::test {
namespace {

const std::vector<std::string> kTexts = {"In the beginning", "And God said", "Jesus wept",
                                         "The LORD is my shepherd", "Blessed are"};

RunConfig config_of_job() {
  RunConfig config = test_config(data_path("bloom-kjv"));
  config.batch_size = {3};
  config.max_new_tokens = 12;
  return config;
}

/// Settings that a job can have too, so that the answers can be compared.
std::vector<OwnSettings> varied() {
  std::vector<OwnSettings> all(6);
  all[1].temperature = 0.9F;
  all[1].seed = 7;
  all[2].temperature = 1.3F;
  all[2].top_k = 5;
  all[2].seed = 11;
  all[3].max_new_tokens = 25;
  all[3].repetition_penalty = 1.5F;
  all[4].temperature = 0.7F;
  all[4].top_p = 0.8F;
  all[4].stop = {" the", "and"};
  all[5].logprobs = 3;
  all[5].ignore_eos = true;
  all[5].max_new_tokens = 40;
  return all;
}

/// The job whose settings for all are these.
RunConfig with(RunConfig config, const OwnSettings& own) {
  const GenerationSettings s = own.over(GenerationOptions::from(config).settings);
  config.max_new_tokens = s.max_new_tokens;
  config.temperature = static_cast<double>(s.temperature);
  config.top_k = s.top_k;
  config.top_p = static_cast<double>(s.top_p);
  config.repetition_penalty = static_cast<double>(s.repetition_penalty);
  config.seed = s.seed;
  config.stop = s.stop;
  config.ignore_eos = s.ignore_eos;
  config.logprobs = s.logprobs.value_or(0);
  return config;
}

class ListedPrompts : public PromptSource {
 public:
  explicit ListedPrompts(std::vector<Prompt> prompts) : prompts_(std::move(prompts)) {}
  std::vector<Prompt> take(std::size_t most, bool) override {
    std::vector<Prompt> taken;
    while (taken.size() < most && next_ < prompts_.size()) taken.push_back(prompts_[next_++]);
    return taken;
  }
  bool exhausted() override { return next_ == prompts_.size(); }
  std::optional<std::uint64_t> total() const override { return prompts_.size(); }

 protected:
  std::vector<Prompt> prompts_;
  std::size_t next_ = 0;
};

std::vector<Prompt> prompts_with(const std::vector<OwnSettings>& settings) {
  std::vector<Prompt> prompts;
  for (const OwnSettings& own : settings) {
    for (const std::string& text : kTexts) {
      Prompt prompt;
      prompt.index = prompts.size();
      prompt.id = std::to_string(prompt.index);
      prompt.where = "prompt " + prompt.id;
      prompt.text = text;
      prompt.own = own;
      prompts.push_back(std::move(prompt));
    }
  }
  return prompts;
}

/// Collects what a server's sink is told.
class RecordingSink : public OutputSink {
 public:
  void told(std::uint64_t index, const Delta& delta) override {
    EXPECT_EQ(results.count(index), 0u) << "told after its end";
    texts[index] += delta.text;
    new_tokens[index] += delta.new_tokens;
  }
  void finished(const Result& result) override {
    EXPECT_TRUE(results.emplace(result.index, result).second);
  }
  void failed(std::uint64_t index, const std::string& why) override { failures[index] = why; }
  void ranks(std::span<const RankStatus> ranks) override {
    EXPECT_EQ(ranks.size(), static_cast<std::size_t>(world().size()));
    most_pages = std::max(most_pages, ranks.front().kv_pages_used);
    last.assign(ranks.begin(), ranks.end());
  }

  std::map<std::uint64_t, Result> results;
  std::map<std::uint64_t, std::string> texts, failures;
  std::map<std::uint64_t, std::int64_t> new_tokens;
  std::int64_t most_pages = 0;
  std::vector<RankStatus> last;
};

/// Collective.
Engine::Outcome run(const RunConfig& config, PromptSource* source, OutputSink* sink) {
  Engine engine(world(), make_backend(world(), config), config);
  return engine.generate({.source = source,
                          .sink = sink,
                          .lanes = config.batch_size.front(),
                          .options = engine.generation_options()});
}

TEST(OwnSettings, OfEachPromptAreAnsweredAsAJobsForAll) {
  const std::vector<OwnSettings> settings = varied();
  std::vector<Prompt> prompts = prompts_with(settings);
  RecordingSink mixed;
  ListedPrompts source(prompts);
  run(config_of_job(), &source, &mixed);
  for (std::size_t i = 0; i < settings.size(); ++i) {
    // The prompts keep their indices, which fix their draws.
    std::vector<Prompt> same(prompts.begin() + static_cast<long>(i * kTexts.size()),
                             prompts.begin() + static_cast<long>((i + 1) * kTexts.size()));
    for (Prompt& prompt : same) prompt.own = {};
    RecordingSink alone;
    ListedPrompts alone_source(std::move(same));
    run(with(config_of_job(), settings[i]), &alone_source, &alone);
    if (world().rank() != 0) continue;
    ASSERT_EQ(alone.results.size(), kTexts.size());
    for (const auto& [index, result] : alone.results) {
      ASSERT_EQ(mixed.results.count(index), 1u);
      const Result& m = mixed.results.at(index);
      EXPECT_EQ(m.to_json().substr(m.to_json().find("\"prompt\"")),
                result.to_json().substr(result.to_json().find("\"prompt\"")))
          << "settings " << i;
    }
  }
}

TEST(OwnSettings, ThePromptsLogprobsAreTheScoresAndItGoesOnFromThere) {
  std::vector<OwnSettings> settings(2);
  settings[0].prompt_logprobs = 2;
  settings[0].max_new_tokens = 6;
  settings[1].max_new_tokens = 6;
  RecordingSink generated;
  ListedPrompts source(prompts_with(settings));
  run(config_of_job(), &source, &generated);
  RunConfig config = config_of_job();
  config.score = true;
  RecordingSink scored;
  ListedPrompts score_source(prompts_with({OwnSettings()}));
  run(config, &score_source, &scored);
  if (world().rank() != 0) return;
  for (std::uint64_t i = 0; i < kTexts.size(); ++i) {
    const Result& r = generated.results.at(i);
    EXPECT_EQ(r.token_ids, generated.results.at(i + kTexts.size()).token_ids);
    const std::vector<float>& scores = *scored.results.at(i).token_logprobs;
    ASSERT_EQ(r.prompt_logprobs->size(), scores.size());
    for (std::size_t t = 0; t < scores.size(); ++t) {
      const TokenLogprob& token = (*r.prompt_logprobs)[t];
      EXPECT_FLOAT_EQ(token.logprob, scores[t]);
      ASSERT_EQ(token.top.size(), 2u);
      EXPECT_GE(token.top[0].second, token.top[1].second);
      EXPECT_GE(token.top[0].second, token.logprob);
    }
  }
}

TEST(OwnSettings, TheSameSeedGivesTheSameTextWhereverThePromptStands) {
  OwnSettings own;
  own.temperature = 1;
  own.seed = 42;
  own.draw_number = 0;
  std::vector<Prompt> prompts = prompts_with({own, own});
  RecordingSink sink;
  ListedPrompts source(std::move(prompts));
  run(config_of_job(), &source, &sink);
  if (world().rank() != 0) return;
  std::set<std::string> texts;
  for (std::uint64_t i = 0; i < kTexts.size(); ++i) {
    EXPECT_EQ(sink.results.at(i).token_ids, sink.results.at(i + kTexts.size()).token_ids);
    texts.insert(sink.results.at(i).text);
  }
  EXPECT_GT(texts.size(), 1u);
}

TEST(OwnSettings, PenaltiesBiasesAndLeastTokensWork) {
  const std::int32_t best = [&] {
    RecordingSink sink;
    ListedPrompts source(prompts_with({OwnSettings()}));
    run(config_of_job(), &source, &sink);
    return world().rank() == 0 ? sink.results.at(0).token_ids.at(0) : 0;
  }();
  std::vector<OwnSettings> settings(5);
  settings[0].logit_bias = {{best, -100.0F}};
  settings[1].logit_bias = {{17, 100.0F}};
  settings[2].presence_penalty = 100;
  settings[2].max_new_tokens = 40;
  settings[3].frequency_penalty = 100;
  settings[3].max_new_tokens = 40;
  settings[4].min_new_tokens = 30;
  settings[4].max_new_tokens = 30;
  settings[4].logit_bias = {{1, 100.0F}, {2, 100.0F}};  // whatever ends a text
  RecordingSink sink;
  ListedPrompts source(prompts_with(settings));
  run(config_of_job(), &source, &sink);
  if (world().rank() != 0) return;
  const auto ids = [&](std::size_t setting) -> const std::vector<std::int32_t>& {
    return sink.results.at(setting * kTexts.size()).token_ids;
  };
  EXPECT_EQ(std::ranges::count(ids(0), best), 0);
  EXPECT_EQ(std::ranges::count(ids(1), 17), std::ssize(ids(1)));
  for (const std::size_t penalised : {std::size_t{2}, std::size_t{3}}) {
    const std::set<std::int32_t> distinct(ids(penalised).begin(), ids(penalised).end());
    EXPECT_EQ(distinct.size(), ids(penalised).size()) << "a token came twice";
  }
  for (std::size_t i = 4 * kTexts.size(); i < 5 * kTexts.size(); ++i) {
    EXPECT_EQ(sink.results.at(i).token_ids.size(), 30u);
    EXPECT_EQ(sink.results.at(i).finish_reason, "length");
  }
}

TEST(Streams, DeltasOfPromptsThatStreamMakeTheirText) {
  std::vector<Prompt> prompts = prompts_with(varied());
  for (Prompt& prompt : prompts) prompt.stream = prompt.index % 3 != 0;
  RecordingSink sink;
  ListedPrompts source(prompts);
  run(config_of_job(), &source, &sink);
  if (world().rank() != 0) return;
  for (const auto& [index, result] : sink.results) {
    const bool streams = index % 3 != 0;
    EXPECT_EQ(sink.texts[index], streams ? result.text : "");
    EXPECT_EQ(sink.new_tokens[index], streams ? std::ssize(result.token_ids) : 0);
  }
  EXPECT_EQ(sink.results.size(), prompts.size());
}

/// Says of every third prompt that nobody wants it any more, some turns after it was taken.
class FickleSource final : public ListedPrompts {
 public:
  using ListedPrompts::ListedPrompts;
  std::vector<Prompt> take(std::size_t most, bool wait) override {
    std::vector<Prompt> taken = ListedPrompts::take(most, wait);
    for (const Prompt& prompt : taken) {
      if (prompt.index % 3 == 1) given_up_.emplace(turn_ + prompt.index % 5, prompt.index);
    }
    return taken;
  }
  bool exhausted() override { return ListedPrompts::exhausted() && given_up_.empty(); }
  std::vector<std::uint64_t> cancelled() override {
    ++turn_;
    std::vector<std::uint64_t> indices;
    while (!given_up_.empty() && given_up_.begin()->first <= turn_) {
      indices.push_back(given_up_.begin()->second);
      given_up_.erase(given_up_.begin());
    }
    return indices;
  }

 private:
  std::uint64_t turn_ = 0;
  std::multimap<std::uint64_t, std::uint64_t> given_up_;
};

TEST(Cancelled, SequencesEndWithoutAResultAndTheOthersAreAnsweredAsEver) {
  const std::vector<Prompt> prompts = prompts_with(varied());
  RecordingSink whole, some;
  ListedPrompts source(prompts);
  FickleSource fickle(prompts);
  run(config_of_job(), &source, &whole);
  const Engine::Outcome outcome = run(config_of_job(), &fickle, &some);
  std::int64_t cancelled = 0;
  for (const std::int64_t n : world().all_gather(outcome.stats.cancelled)) cancelled += n;
  if (world().rank() != 0) return;
  EXPECT_EQ(cancelled + std::ssize(some.results), std::ssize(prompts));
  EXPECT_GT(cancelled, 3);
  for (const Prompt& prompt : prompts) {
    if (prompt.index % 3 != 1) {
      ASSERT_EQ(some.results.count(prompt.index), 1u);
      EXPECT_EQ(some.results.at(prompt.index).token_ids, whole.results.at(prompt.index).token_ids);
    }
  }
  EXPECT_TRUE(some.failures.empty());
  EXPECT_GT(some.most_pages, 0);
  for (const RankStatus& rank : some.last) {
    EXPECT_EQ(rank.kv_pages_used, 0);
    EXPECT_EQ(rank.active, 0);
  }
}

TEST(Failures, ReachTheSinkWithTheirReason) {
  OwnSettings too_many;
  too_many.max_new_tokens = 1 << 20;
  RecordingSink sink;
  ListedPrompts source(prompts_with({OwnSettings(), too_many}));
  const Engine::Outcome outcome = run(config_of_job(), &source, &sink);
  if (world().rank() != 0) return;
  EXPECT_EQ(outcome.failed.refused, std::ssize(kTexts));
  EXPECT_EQ(sink.results.size(), kTexts.size());
  for (std::uint64_t i = 0; i < kTexts.size(); ++i) {
    EXPECT_THAT(sink.failures.at(i + kTexts.size()),
                testing::HasSubstr("1048576 new ones do not fit the KV cache"));
  }
}

}  // namespace
}  // namespace zi::test
