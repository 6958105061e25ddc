#include "text/encoded_prompts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "zero_infer/error.h"

namespace zi {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::IsEmpty;

Prompt numbered(std::uint64_t index, std::string text) {
  Prompt prompt;
  prompt.index = index;
  prompt.text = std::move(text);
  prompt.where = "in.jsonl:" + std::to_string(index + 1);
  return prompt;
}

/// Prompts as a test lets them come.
class ScriptedPrompts final : public PromptSource {
 public:
  explicit ScriptedPrompts(std::size_t count = 0) {
    for (std::size_t i = 0; i < count; ++i) add(std::string(i + 1, 'a'));
  }
  void add(std::string text) { prompts.push_back(numbered(prompts.size(), std::move(text))); }

  std::vector<Prompt> take(std::size_t most, bool wait) override {
    waited = waited || wait;
    if (failure && taken == prompts.size()) std::rethrow_exception(failure);
    const std::size_t count = std::min({most, at_once, prompts.size() - taken});
    const auto begin = prompts.begin() + static_cast<std::ptrdiff_t>(taken);
    taken += count;
    return {begin, begin + static_cast<std::ptrdiff_t>(count)};
  }
  bool exhausted() override { return !open && !failure && taken == prompts.size(); }
  std::optional<std::uint64_t> total() const override { return prompts.size(); }
  void wait() override { ++waits; }

  std::vector<Prompt> prompts;
  std::size_t taken = 0;
  std::size_t at_once = 1000;
  std::exception_ptr failure;  // after the prompts
  bool open = false;           // more may come
  bool waited = false;         // in `take`
  int waits = 0;
};

/// A text's token is its length. The calls wait at a gate.
class GatedEncoder {
 public:
  PromptEncoder encoder() {
    return [this](const Prompt& prompt) {
      std::unique_lock lock(mutex_);
      calls_.push_back(prompt.index);
      changed_.notify_all();
      changed_.wait(lock, [&] { return calls_.size() <= allowed_; });
      if (prompt.text == "bad") throw PromptError("no tokens");
      return std::vector{static_cast<std::int32_t>(prompt.text->size())};
    };
  }
  /// Lets so many calls go by in all.
  void allow(std::size_t calls) {
    const std::lock_guard lock(mutex_);
    allowed_ = calls;
    changed_.notify_all();
  }
  /// Until the call of this number (from 1) has begun: what the ones before it gave is kept then.
  void wait_for_call(std::size_t number) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return calls_.size() >= number; });
  }
  std::vector<std::uint64_t> calls() {
    const std::lock_guard lock(mutex_);
    return calls_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t allowed_ = 0;
  std::vector<std::uint64_t> calls_;
};

/// A test with a source, whose end lets the encoder's thread end.
struct EncodedPrompts : testing::Test {
  ~EncodedPrompts() override { gate.allow(1000); }
  void begin(std::size_t most) { ahead = encode_ahead(source, gate.encoder(), most); }

  ScriptedPrompts source{6};
  GatedEncoder gate;
  std::unique_ptr<PromptSource> ahead;
};

std::vector<std::uint64_t> indices(const std::vector<Prompt>& prompts) {
  std::vector<std::uint64_t> all;
  for (const Prompt& prompt : prompts) all.push_back(prompt.index);
  return all;
}

/// The tokens of each; -1 for those that have none.
std::vector<std::int32_t> tokens(const std::vector<Prompt>& prompts) {
  std::vector<std::int32_t> all;
  for (const Prompt& prompt : prompts) all.push_back(prompt.text_ids ? prompt.text_ids->at(0) : -1);
  return all;
}

TEST_F(EncodedPrompts, ComeInOrderAndWithTheirTokensWhenThereWasTime) {
  begin(3);
  const std::vector<Prompt> first = ahead->take(2, false);
  EXPECT_THAT(indices(first), ElementsAre(0, 1));
  EXPECT_THAT(tokens(first), Each(-1)) << "there was no time";
  gate.allow(2);
  gate.wait_for_call(3);
  const std::vector<Prompt> next = ahead->take(2, false);
  EXPECT_THAT(indices(next), ElementsAre(2, 3));
  EXPECT_THAT(tokens(next), ElementsAre(3, 4));
  EXPECT_EQ(next[0].text, "aaa") << "the text is there as well";
  EXPECT_EQ(next[0].where, "in.jsonl:3");
  EXPECT_FALSE(next[0].ids) << "the user gave none";
  EXPECT_FALSE(ahead->exhausted()) << "two are kept";
  EXPECT_THAT(indices(ahead->take(5, false)), ElementsAre(4, 5));
  EXPECT_TRUE(ahead->exhausted());
  EXPECT_EQ(ahead->total(), 6u);
}

TEST_F(EncodedPrompts, NobodyWaitsForAPromptThatIsBeingCut) {
  begin(6);
  EXPECT_THAT(ahead->take(0, false), IsEmpty());
  gate.wait_for_call(1);  // it stays at the gate
  const std::vector<Prompt> first = ahead->take(2, false);
  EXPECT_THAT(indices(first), ElementsAre(0, 1));
  EXPECT_THAT(tokens(first), ElementsAre(-1, -1));
  gate.allow(2);
  gate.wait_for_call(3);
  EXPECT_THAT(gate.calls(), ElementsAre(0, 2, 3)) << "1 is another's task";
  EXPECT_THAT(tokens(ahead->take(2, false)), ElementsAre(3, -1))
      << "the late tokens of 0 are not those of 2";
}

TEST_F(EncodedPrompts, AreCutAgainAfterAllWereTakenWhileOneWasBeingCut) {
  source.open = true;
  begin(6);
  EXPECT_THAT(ahead->take(0, false), IsEmpty());
  gate.wait_for_call(1);  // it stays at the gate
  EXPECT_EQ(ahead->take(6, false).size(), 6u);
  gate.allow(1);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // the thread finds nothing
  EXPECT_THAT(gate.calls(), ElementsAre(0));
  source.add("seven");
  EXPECT_THAT(ahead->take(0, false), IsEmpty());
  gate.allow(2);
  gate.wait_for_call(2);
  EXPECT_THAT(gate.calls(), ElementsAre(0, 6));
}

TEST_F(EncodedPrompts, ComeAsTheyAreWhereTheyCannotBeCutOrAreIds) {
  source.prompts.clear();
  source.add("bad");
  source.add("");
  source.prompts[1].text.reset();
  source.prompts[1].ids = {9, 8, 7};
  source.add("good");
  source.add("last");
  begin(6);
  EXPECT_THAT(ahead->take(0, false), IsEmpty());
  gate.allow(2);
  gate.wait_for_call(3);
  const std::vector<Prompt> prompts = ahead->take(3, false);
  EXPECT_THAT(tokens(prompts), ElementsAre(-1, -1, 4));
  EXPECT_THAT(prompts[1].ids, testing::Optional(ElementsAre(9, 8, 7)));
  EXPECT_THAT(gate.calls(), ElementsAre(0, 2, 3));
}

TEST_F(EncodedPrompts, AreNotCutAgainWhereTheyHaveTheirTokens) {
  source.prompts[0].text_ids = {17};
  source.prompts[2].text_ids = {19};
  source.prompts[2].text = "bad";
  gate.allow(2);
  begin(6);
  EXPECT_THAT(ahead->take(0, false), IsEmpty());
  gate.wait_for_call(3);
  EXPECT_THAT(gate.calls(), ElementsAre(1, 3, 4));
  EXPECT_THAT(tokens(ahead->take(4, false)), ElementsAre(17, 2, 19, 4));
}

TEST_F(EncodedPrompts, KeepNoMoreThanTheyMay) {
  gate.allow(1000);
  begin(2);
  EXPECT_EQ(source.taken, 0u) << "nothing is taken before it is asked for";
  ahead->take(1, false);
  EXPECT_EQ(source.taken, 3u);
  ahead->take(1, false);
  EXPECT_EQ(source.taken, 4u);
}

TEST_F(EncodedPrompts, KeepNoMoreTextThanTheyMay) {
  gate.allow(1000);
  source.prompts.clear();
  for (int i = 0; i < 8; ++i) source.add(std::string(6 << 20, 'a'));
  source.at_once = 1;
  begin(8);
  for (int i = 0; i < 8; ++i) ahead->take(0, false);
  EXPECT_EQ(source.taken, 3u) << "the third one is beyond 16 MiB";
  EXPECT_THAT(indices(ahead->take(1, false)), ElementsAre(0));
  EXPECT_EQ(source.taken, 4u) << "there was room again";
}

TEST_F(EncodedPrompts, TheFailureOfASourceComesAfterThePromptsBeforeIt) {
  gate.allow(1000);
  source.failure = std::make_exception_ptr(IoError("the disk is gone"));
  begin(4);
  EXPECT_THAT(indices(ahead->take(4, false)), ElementsAre(0, 1, 2, 3));
  ahead->take(0, false);
  EXPECT_EQ(source.taken, 6u);
  EXPECT_THAT(indices(ahead->take(4, false)), ElementsAre(4, 5));
  EXPECT_FALSE(ahead->exhausted());
  EXPECT_THROW(ahead->take(1, false), IoError);
  EXPECT_THROW(ahead->take(1, true), IoError) << "it goes on failing";
  ahead->wait();
  EXPECT_EQ(source.waits, 0) << "there is something new to say";
}

TEST_F(EncodedPrompts, WaitForTheSourceOnlyWhereNoneIsKept) {
  gate.allow(1000);
  source.open = true;
  begin(2);
  EXPECT_EQ(ahead->take(4, true).size(), 4u);
  source.waited = false;
  ahead->wait();
  EXPECT_EQ(source.waits, 0);
  EXPECT_EQ(ahead->take(4, true).size(), 2u) << "no more can be had at once";
  EXPECT_FALSE(source.waited);
  EXPECT_FALSE(ahead->exhausted()) << "more may come";
  ahead->wait();
  EXPECT_EQ(source.waits, 1);
  EXPECT_THAT(ahead->take(4, true), IsEmpty());
  EXPECT_TRUE(source.waited);
  source.add("more");
  EXPECT_THAT(indices(ahead->take(4, true)), ElementsAre(6));
}

TEST_F(EncodedPrompts, EndWithThePromptThatIsBeingCut) {
  constexpr std::size_t kPrompts = 1000;
  std::atomic<std::size_t> calls = 0;
  const auto slow = [&](const Prompt&) {
    ++calls;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    return std::vector<std::int32_t>();
  };
  source = ScriptedPrompts(kPrompts);
  ahead = encode_ahead(source, slow, kPrompts);
  ahead->take(0, false);
  while (calls == 0) std::this_thread::yield();
  ahead.reset();
  EXPECT_LT(calls, kPrompts);
}

}  // namespace
}  // namespace zi
