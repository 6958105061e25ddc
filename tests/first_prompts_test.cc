#include "text/first_prompts.h"

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

/// Gives two prompts at a time.
class InTwos final : public PromptSource {
 public:
  explicit InTwos(int count) : count_(count) {}
  std::vector<Prompt> take(std::size_t most, bool) override {
    std::vector<Prompt> prompts;
    for (; prompts.size() < std::min<std::size_t>(most, 2) && taken < count_; ++taken) {
      Prompt prompt;
      prompt.index = static_cast<std::uint64_t>(taken);
      prompt.text = std::string(1, static_cast<char>('a' + taken));
      prompt.where = "in:" + std::to_string(taken + 1);
      prompts.push_back(std::move(prompt));
    }
    return prompts;
  }
  bool exhausted() override { return taken == count_; }
  std::optional<std::uint64_t> total() const override { return 7; }

  int taken = 0;

 private:
  int count_;
};

/// Gives as many at a time as it is asked for.
class AsManyAsAsked final : public PromptSource {
 public:
  explicit AsManyAsAsked(std::vector<Prompt> prompts) : prompts_(std::move(prompts)) {}
  std::vector<Prompt> take(std::size_t most, bool) override {
    std::vector<Prompt> taken;
    while (taken.size() < most && !exhausted()) taken.push_back(prompts_[next_++]);
    return taken;
  }
  bool exhausted() override { return next_ == prompts_.size(); }
  std::optional<std::uint64_t> total() const override { return prompts_.size(); }

 private:
  std::vector<Prompt> prompts_;
  std::size_t next_ = 0;
};

std::string texts_of(PromptSource& source) {
  std::string texts;
  while (!source.exhausted()) {
    for (const Prompt& prompt : source.take(3, true)) texts += *prompt.text;
  }
  return texts;
}

TEST(CheckFirstPrompts, LeavesOutAndReportsWhatIsRefusedAndKeepsTheOrder) {
  std::vector<std::string> errors;
  auto source = std::make_unique<InTwos>(6);
  InTwos& in_twos = *source;
  const auto checked = check_first_prompts(
      std::move(source), 3,
      [](Prompt& prompt) {
        if (prompt.text == "b") throw PromptError("no b");
        *prompt.text += "'";
      },
      [&](const std::string& error) { errors.push_back(error); });
  EXPECT_EQ(in_twos.taken, 3);
  EXPECT_EQ(checked->total(), 7u);
  EXPECT_THAT(errors, ElementsAre("in:2: no b"));
  EXPECT_FALSE(checked->exhausted());
  EXPECT_EQ(texts_of(*checked), "a'c'def");
}

TEST(CheckFirstPrompts, TriesNoMoreTextThanIsKept) {
  std::vector<Prompt> prompts(5);
  for (Prompt& prompt : prompts) prompt.text = std::string(6 << 20, 'a');
  prompts[1].text.reset();
  prompts[1].ids = std::vector<std::int32_t>((6 << 20) / sizeof(std::int32_t), 7);
  int tried = 0;
  const auto checked = check_first_prompts(
      std::make_unique<AsManyAsAsked>(std::move(prompts)), 64, [&](Prompt&) { ++tried; },
      [](const std::string&) {});
  EXPECT_EQ(tried, 3) << "the third one is beyond 16 MiB";
  EXPECT_EQ(checked->take(9, true).size(), 3u);
  EXPECT_EQ(checked->take(9, true).size(), 2u);
}

TEST(CheckFirstPrompts, IsExhaustedWhereNoneIsLeft) {
  int errors = 0;
  const auto checked = check_first_prompts(
      std::make_unique<InTwos>(3), 64, [](Prompt&) { throw PromptError("no"); },
      [&](const std::string&) { ++errors; });
  EXPECT_EQ(errors, 3);
  EXPECT_TRUE(checked->exhausted());
  EXPECT_TRUE(checked->take(1, true).empty());
}

}  // namespace
}  // namespace zi
