#include "text/pre_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <ctime>
#include <string>
#include <vector>

#include "text/added_tokens.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

std::vector<std::string> isolate(const std::string& pattern, std::string_view text,
                                 milliseconds most = milliseconds(10000)) {
  SplitBudget budget(most, text.size());
  std::vector<std::string> pieces;
  split_by(Pattern::regex(pattern), SplitBehavior::kIsolated, false, text, budget,
           [&](std::string_view piece) { pieces.emplace_back(piece); });
  return pieces;
}

TEST(Regex, GivesMatchesAndGaps) {
  EXPECT_THAT(isolate("b+", "abbcb"), ElementsAre("a", "bb", "c", "b"));
  EXPECT_THAT(isolate("x", "abc"), ElementsAre("abc"));
  EXPECT_THAT(isolate("", "ab"), ElementsAre("a", "b"));
}

TEST(Regex, FindsTheSameWhenASearchNeedsSeveralAttempts) {
  // The gap alone takes more retries than a first attempt has.
  const std::string gap(5000, 'a');
  EXPECT_THAT(isolate("ab", gap + "ab" + gap), ElementsAre(gap, "ab", gap));
  // Backtracks through the whole run before it gives up the last character.
  EXPECT_THAT(isolate("(a|b)*c", gap + "c" + "ab"), ElementsAre(gap + "c", "ab"));
  EXPECT_THAT(isolate(R"(\s+(?!\S)|\s+)", std::string(3000, ' ') + "x"),
              ElementsAre(std::string(2999, ' '), " ", "x"));
}

TEST(Regex, EndsWhereOneSearchTakesTooLong) {
  // Each start looks at all that follows and then gives up: few retries, and much time in each.
  const std::string text(1 << 20, 'x');
  const auto start = std::chrono::steady_clock::now();
  EXPECT_THAT(
      [&] { isolate("x+[yz]", text, milliseconds(20)); },
      ThrowsMessage<PromptError>(HasSubstr("processor time to split this text of 1048576")));
  // Without a budget: hours. The limit is generous for a busy machine and a sanitizer.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
}

TEST(Regex, EndsWhereManySearchesTakeTooLongTogether) {
  // Each search is over in a millisecond, and there are a million of them.
  const std::string text(1 << 20, 'x');
  EXPECT_THAT([&] { isolate("x+[yz]|x", text, milliseconds(20)); },
              ThrowsMessage<PromptError>(HasSubstr("more than 0.0 s of processor time")));
}

TEST(Regex, EndsWhereASearchBacktracksWithoutEnd) {
  EXPECT_THAT([&] { isolate("(x+x+)+y", std::string(200, 'x')); },
              ThrowsMessage<PromptError>(HasSubstr("`(x+x+)+y` cannot split this text of 200")));
}

TEST(Regex, QuotesAPatternThatItRefuses) {
  EXPECT_THAT([&] { Regex(std::string("[\x1b") + std::string(500, 'x')); },
              ThrowsMessage<CheckpointError>(HasSubstr("the regular expression `[\uFFFDxxx")));
}

std::vector<std::string> split(const Pattern& pattern, SplitBehavior behavior,
                               std::string_view text, bool invert = false) {
  SplitBudget budget = SplitBudget::for_text(text.size());
  std::vector<std::string> pieces;
  split_by(pattern, behavior, invert, text, budget,
           [&](std::string_view piece) { pieces.emplace_back(piece); });
  return pieces;
}

TEST(Split, PutsMatchesWhereTheBehaviorSays) {
  const Pattern dash = Pattern::literal("-");
  using enum SplitBehavior;
  const char* const text = "the-final--countdown";
  EXPECT_THAT(split(dash, kIsolated, text),
              ElementsAre("the", "-", "final", "-", "-", "countdown"));
  EXPECT_THAT(split(dash, kRemoved, text), ElementsAre("the", "final", "countdown"));
  EXPECT_THAT(split(dash, kMergedWithPrevious, text),
              ElementsAre("the-", "final-", "-", "countdown"));
  EXPECT_THAT(split(dash, kMergedWithNext, text), ElementsAre("the", "-final", "-", "-countdown"));
  EXPECT_THAT(split(dash, kContiguous, text), ElementsAre("the", "-", "final", "--", "countdown"));
  EXPECT_THAT(split(Pattern::regex("[a-z]+"), kRemoved, text, true),
              ElementsAre("the", "final", "countdown"));
}

TEST(Split, FindsALiteralTextWhereverItIsAndEndsWhereThatTakesTooLong) {
  const std::string gap(50000, 'x');
  const Pattern literal = Pattern::literal("xy");
  EXPECT_THAT(split(literal, SplitBehavior::kIsolated, gap + "y" + gap + "y"),
              ElementsAre(gap.substr(1), "xy", gap.substr(1), "xy"));
  const std::string text(std::size_t{1} << 26, 'x');
  SplitBudget budget(milliseconds(20), text.size());
  EXPECT_THROW(split_by(Pattern::literal(std::string(1000, 'x') + "y"), SplitBehavior::kIsolated,
                        false, text, budget, [](std::string_view) {}),
               PromptError);
}

TEST(SplitBudget, CountsSearchesForAddedTokensToo) {
  // As many tokens as can be, each of which is nearly there at each place.
  std::vector<AddedTokens::Token> tokens;
  for (std::int32_t id = 0; id < 20000; ++id) {
    tokens.push_back({std::string(100, '<') + std::to_string(id), id});
  }
  const AddedTokens added(std::move(tokens));
  const std::string text(1 << 20, '<');
  SplitBudget budget(milliseconds(20), text.size());
  const auto nothing = [](auto) {};
  EXPECT_THROW(added.split(text, budget, nothing, nothing), PromptError);
}

TEST(AddedTokens, AreFoundAsTheLongestOfThoseThatBeginAlike) {
  const AddedTokens added(
      {{"<", 0}, {"<a>", 1}, {"<ab", 2}, {"<ab>", 3}, {"<abcd>", 4}, {"b", 5}, {"<a>", 6}});
  std::vector<std::string> found;
  SplitBudget budget = SplitBudget::for_text(100);
  added.split(
      "<abc<ab><a><abcd><x<ab", budget, [&](std::string_view text) { found.emplace_back(text); },
      [&](std::int32_t id) { found.push_back(std::to_string(id)); });
  EXPECT_THAT(found, ElementsAre("2", "c", "3", "1", "4", "0", "x", "2"));
}

TEST(AddedTokens, OfOneFirstByteTakeLittleTime) {
  std::vector<AddedTokens::Token> tokens;
  for (std::int32_t id = 0; id < 6200; ++id) {
    tokens.push_back({"<unused" + std::to_string(id) + ">", id});
  }
  const AddedTokens added(std::move(tokens));
  const std::string text(1 << 20, '<');
  // 3 us a byte under a sanitizer; one by one it was 15.
  SplitBudget budget(milliseconds(3000), text.size());
  std::size_t texts = 0;
  added.split(
      text, budget, [&](std::string_view) { ++texts; }, [](std::int32_t) { FAIL(); });
  EXPECT_EQ(texts, 1u);
}

TEST(Regex, SaysThatAStretchIsTooLongToSplit) {
  EXPECT_THAT(
      [&] { isolate(R"(\p{L}+)", std::string(9'000'000, 'a'), milliseconds(60'000)); },
      ThrowsMessage<PromptError>(HasSubstr("no place to split a stretch of about 8 million")));
}

TEST(SplitBudget, OfAShortTextIsASecond) {
  const std::string text(100'000, 'a');
  const auto cpu = [] { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; };
  const double start = cpu();
  EXPECT_THROW(split(Pattern::regex(R"((?=(a+))\1b)"), SplitBehavior::kIsolated, text),
               PromptError);
  EXPECT_LT(cpu() - start, 4);
}

TEST(SplitBudget, IsThereForEveryTextAndGrowsWithIt) {
  SplitBudget small = SplitBudget::for_text(0);
  for (int i = 0; i < 1000; ++i) small.check();
}

}  // namespace
}  // namespace zi
