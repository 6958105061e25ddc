#include "text/finished_prompts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "text/prompt_line.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

/// Prompts in memory.
class ListedPrompts final : public PromptSource {
 public:
  explicit ListedPrompts(std::vector<Prompt> prompts) : prompts_(std::move(prompts)) {}
  std::vector<Prompt> take(std::size_t most, bool) override {
    const std::size_t count = std::min(most, prompts_.size() - taken_);
    const auto begin = prompts_.begin() + static_cast<std::ptrdiff_t>(taken_);
    taken_ += count;
    return {begin, begin + static_cast<std::ptrdiff_t>(count)};
  }
  bool exhausted() override { return taken_ == prompts_.size(); }
  std::optional<std::uint64_t> total() const override { return prompts_.size(); }

 private:
  std::vector<Prompt> prompts_;
  std::size_t taken_ = 0;
};

Prompt by_text(const std::string& id, const std::string& text) {
  Prompt prompt;
  prompt.id = id;
  prompt.text = text;
  return prompt;
}

Prompt by_ids(const std::string& id, const std::vector<std::int32_t>& ids) {
  Prompt prompt;
  prompt.id = id;
  prompt.ids = ids;
  return prompt;
}

/// The ids of the prompts that are left of these, by what is done.
std::vector<std::string> left(const std::vector<Prompt>& prompts,
                              const std::vector<std::pair<std::string, FinishedPrompt>>& done,
                              std::optional<std::int64_t> max_new_tokens = std::nullopt) {
  FinishedPrompts finished;
  RecordedJob job;
  if (max_new_tokens) job.settings.max_new_tokens = *max_new_tokens;
  for (const auto& [id, prompt] : done) finished.by_id[id] = prompt;
  const auto source = skip_done(std::make_unique<ListedPrompts>(prompts),
                                std::make_shared<const FinishedPrompts>(std::move(finished)), job,
                                max_new_tokens ? ChangedLimits::kTell : ChangedLimits::kIgnore);
  EXPECT_EQ(source->total(), prompts.size() - std::min(prompts.size(), done.size()));
  std::vector<std::string> ids;
  while (!source->exhausted()) {
    for (const Prompt& prompt : source->take(1, true)) ids.push_back(prompt.id);
  }
  return ids;
}

TEST(SkipDone, LeavesOutWhatIsDone) {
  const auto text = [](const char* prompt) { return FinishedPrompt::of_text(prompt, 1); };
  EXPECT_THAT(
      left({by_text("0", "a"), by_text("\"x\"", "b"), by_text("2", "c"), by_text("\"2\"", "d")},
           {{"0", text("a")}, {"\"x\"", text("b")}, {"2", text("c")}}),
      ElementsAre("\"2\""));
  EXPECT_THAT(left({by_text("0", "a")}, {{"0", text("a")}, {"1", text("")}, {"2", text("")}}),
              IsEmpty());
}

TEST(SkipDone, WarnsOnceWhereALimitOfNewTokensHasChanged) {
  const auto done = [](std::int64_t new_tokens, bool at_limit) {
    FinishedPrompt finished = FinishedPrompt::of_text("a", 1);
    finished.new_tokens = new_tokens;
    finished.at_limit = at_limit;
    return finished;
  };
  const auto warning = [](const std::vector<Prompt>& prompts, const FinishedPrompt& finished,
                          std::optional<std::int64_t> max_new_tokens) {
    testing::internal::CaptureStderr();
    EXPECT_THAT(left(prompts, {{"0", finished}, {"1", finished}}, max_new_tokens), IsEmpty());
    return testing::internal::GetCapturedStderr();
  };
  const std::vector<Prompt> prompts = {by_text("0", "a"), by_text("1", "a")};
  EXPECT_EQ(warning(prompts, done(8, true), 8), "");
  EXPECT_EQ(warning(prompts, done(7, false), 8), "") << "it ended by itself";
  EXPECT_EQ(warning(prompts, done(8, true), std::nullopt), "");
  EXPECT_THAT(warning(prompts, done(8, true), 9),
              AllOf(HasSubstr("id `0` is in the output file with 8 new tokens, and its limit is "
                              "now 9 (--max-new-tokens)"),
                    Not(HasSubstr("id `1`"))));
  EXPECT_THAT(warning(prompts, done(8, true), 7), HasSubstr("its limit is now 7"));
  EXPECT_THAT(warning(prompts, done(8, false), 7), HasSubstr("its limit is now 7"));
  // The prompt's own limit goes before the job's.
  std::vector<Prompt> own = {prompts[0]};
  own[0].own.max_new_tokens = 8;
  EXPECT_EQ(warning(own, done(8, true), 9), "");
  own[0].own.max_new_tokens = 5;
  EXPECT_THAT(warning(own, done(8, true), 8), HasSubstr("now 5 (its `max_new_tokens`)"));
}

TEST(SkipDone, RefusesAPromptThatChangedUnderItsId) {
  const auto text = [](const FinishedPrompt& done) { left({by_text("0", "a")}, {{"0", done}}); };
  EXPECT_NO_THROW(text(FinishedPrompt::of_text("a", 1)));
  EXPECT_THROW(text(FinishedPrompt::of_text("b", 1)), PromptError);
  const auto ids = [](const FinishedPrompt& done) { left({by_ids("0", {5, 6})}, {{"0", done}}); };
  EXPECT_NO_THROW(ids(FinishedPrompt::of_ids({5, 6})));
  EXPECT_THROW(ids(FinishedPrompt::of_ids({5, 7})), PromptError) << "as many, but others";
  EXPECT_THROW(ids(FinishedPrompt::of_ids({6, 5})), PromptError);
  // A line tells how the prompt was given.
  EXPECT_THROW(text(FinishedPrompt::of_ids({5})), PromptError);
  // Older lines keep no ids.
  EXPECT_NO_THROW(ids(FinishedPrompt::of_text("x", 2)));
  EXPECT_THROW(ids(FinishedPrompt::of_text("x", 1)), PromptError);
}

/// What is wrong with a prompt that `finished`, a line of an output, has answered; empty: nothing.
std::string refusal(const Prompt& prompt, const std::string& record, const RecordedJob& job) {
  FinishedPrompts done;
  done.settings.push_back(record);
  done.by_id["0"] = FinishedPrompt::of_text("a", 1);
  done.by_id["0"].settings = record.empty() ? 0 : 1;
  const auto source = skip_done(std::make_unique<ListedPrompts>(std::vector{prompt}),
                                std::make_shared<const FinishedPrompts>(std::move(done)), job,
                                ChangedLimits::kTell);
  try {
    source->take(1, true);
    return "";
  } catch (const PromptError& error) {
    return error.what();
  }
}

TEST(SkipDone, RefusesATextThatWasDrawnWithOtherSettingsAndNamesThem) {
  const Prompt prompt = by_text("0", "a");
  RecordedJob drawn;
  drawn.settings.temperature = 0.8F;
  drawn.settings.seed = 1;
  const std::string record = settings_record(drawn, prompt);
  EXPECT_EQ(refusal(prompt, record, drawn), "");
  EXPECT_EQ(refusal(prompt, "", drawn), "") << "a line of an older version";
  RecordedJob other = drawn;
  other.model = "it is compared elsewhere";
  other.settings.max_new_tokens = 5;
  other.settings.logprobs = 2;
  EXPECT_EQ(refusal(prompt, record, other), "");
  other.settings.temperature = 0.5F;
  other.settings.seed = 2;
  EXPECT_THAT(refusal(prompt, record, other),
              HasSubstr("id `0` is in the output file with other settings: seed 1 there and 2 "
                        "here, temperature 0.8 there and 0.5 here; --resume needs the same ones"));
  // Those of the prompt itself count as well.
  Prompt own = prompt;
  own.own.temperature = 0.5F;
  EXPECT_THAT(refusal(own, record, drawn), HasSubstr("temperature 0.8 there and 0.5 here"));
  EXPECT_EQ(refusal(own, settings_record(drawn, own), drawn), "");
}

TEST(SkipDone, RefusesATextWhoseSeedWasTheJobsWhereItIsItsOwnNow) {
  const Prompt of_job = parse_prompt_line(R"({"id": 0, "prompt": "a"})");
  const Prompt own = parse_prompt_line(R"({"id": 0, "prompt": "a", "seed": 1})");
  RecordedJob job;
  job.settings.seed = 1;
  EXPECT_EQ(settings_record(job, own), settings_record(job, of_job)) << "a greedy text";
  job.settings.temperature = 0.5F;
  EXPECT_EQ(settings_record(job, of_job), R"({"seed":1,"temperature":0.5})");
  EXPECT_EQ(settings_record(job, own), R"({"draw_number":0,"seed":1,"temperature":0.5})");
  EXPECT_THAT(refusal(own, settings_record(job, of_job), job),
              HasSubstr("draw_number unset there and 0 here"));
  EXPECT_THAT(refusal(of_job, settings_record(job, own), job),
              HasSubstr("draw_number 0 there and unset here"));
}

TEST(SettingsRecord, HoldsWhatChangesATextAndNothingElse) {
  const Prompt text = by_text("0", "a");
  RecordedJob job;
  EXPECT_EQ(settings_record(job, text), R"({"temperature":0.0})");
  job.settings.seed = 5;  // of a greedy text
  job.settings.top_k = 7;
  job.settings.max_new_tokens = 3;
  job.model = "m@0123456789abcdef";
  EXPECT_EQ(settings_record(job, text), R"({"model":"m@0123456789abcdef","temperature":0.0})");
  job.settings.temperature = 0.7F;
  job.settings.stop = {"x\xff"};
  job.special_tokens = false;
  EXPECT_EQ(settings_record(job, text),
            R"({"model":"m@0123456789abcdef","seed":5,"special_tokens":false,)"
            "\"stop\":[\"x\xEF\xBF\xBD\"],\"temperature\":0.7,\"top_k\":7}");
  job.scored = true;
  EXPECT_EQ(settings_record(job, by_ids("0", {5})), R"({"model":"m@0123456789abcdef"})");
}

TEST(SettingsRecord, ComparesModelsByTheirHash) {
  EXPECT_TRUE(same_model("a@0123", "moved@here@0123"));
  EXPECT_FALSE(same_model("a@0123", "a@0124"));
  EXPECT_FALSE(same_model("a@0123", "a@0123, blocks int8"));
  EXPECT_NO_THROW(check_models({{"a@01", 1}}, "b@01", "out.jsonl"));
  EXPECT_THAT(
      [] {
        check_models({{"a@01", 1}, {"a@02", 7}}, "b@01", "out.jsonl");
      },
      testing::ThrowsMessage<ConfigError>(
          HasSubstr("out.jsonl:7 was made by another model: `a@02` there, `b@01` here")));
}

TEST(FinishedPrompt, AnswersMessagesByWhatWasAskedAndNotByTheirText) {
  Prompt prompt = by_text("1", "It is Monday. Hello");
  prompt.chat_hash = "0123456789abcdef";
  FinishedPrompt finished = FinishedPrompt::of_text("It is Sunday. Hello", 5);
  EXPECT_FALSE(finished.answers(prompt)) << "a line that was not asked with messages";
  finished.chat_hash = prompt.chat_hash;
  EXPECT_TRUE(finished.answers(prompt));
  EXPECT_FALSE(finished.answers(by_text("1", "It is Sunday. Hello")));
  prompt.chat_hash = "0123456789abcdee";
  EXPECT_FALSE(finished.answers(prompt));
}

}  // namespace
}  // namespace zi
