#include "text/finished_prompts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "zero_infer/error.h"

namespace zi {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

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
                              const std::vector<std::pair<std::string, FinishedPrompt>>& done) {
  FinishedPrompts finished;
  for (const auto& [id, prompt] : done) finished.by_id[id] = prompt;
  const auto source = skip_done(std::make_unique<ListedPrompts>(prompts),
                                std::make_shared<const FinishedPrompts>(std::move(finished)));
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
