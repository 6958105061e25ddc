#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <random>

#include "zero_infer/bytes.h"
#include "zero_infer/ops.h"

namespace zi {
namespace {

const Tokenizer& tokenizer() {
  static const Tokenizer instance = Tokenizer::bytes();
  return instance;
}

std::unique_ptr<Sequence> sequence(std::int64_t prompt_tokens, std::int64_t new_tokens) {
  auto s = std::make_unique<Sequence>(Prompt{}, tokenizer());
  s->tokens.assign(static_cast<std::size_t>(prompt_tokens), 65);
  s->prompt_tokens = prompt_tokens;
  s->max_new_tokens = new_tokens;
  return s;
}

std::int64_t rows(const std::vector<Chunk>& chunks) {
  std::int64_t n = 0;
  for (const Chunk& c : chunks) n += c.count;
  return n;
}

/// Plays a pass: stores the rows and draws a token where the last row was computed.
void play(Scheduler& scheduler, const std::vector<Chunk>& chunks) {
  for (const Chunk& c : chunks) {
    const bool last = c.last();
    scheduler.advance(c);
    if (!last) continue;
    c.sequence->tokens.push_back(66);
    if (c.sequence->new_tokens() >= c.sequence->max_new_tokens) scheduler.retire(c.sequence);
  }
}

/// Whether a scheduler that is idle has all of these pages: a sequence that needs them runs to its
/// end without being set back.
void expect_all_free(Scheduler& scheduler, std::int64_t pages) {
  const std::int64_t preemptions = scheduler.preemptions();
  Sequence* const all = scheduler.admit(sequence(pages * kKvPageTokens - 1, 1));
  while (scheduler.active() > 0) {
    const auto chunks = scheduler.compose();
    ASSERT_FALSE(chunks.empty());
    if (chunks.back().last()) {
      ASSERT_EQ(static_cast<std::int64_t>(all->pages.size()), pages);
    }
    play(scheduler, chunks);
  }
  EXPECT_EQ(scheduler.preemptions(), preemptions);
}

TEST(Scheduler, CutsAPromptIntoChunksOfTheTokenBudget) {
  Scheduler scheduler(2, 8, 100);
  scheduler.admit(sequence(20, 1));
  std::vector<std::int64_t> counts;
  while (scheduler.active() > 0) {
    const auto chunks = scheduler.compose();
    counts.push_back(rows(chunks));
    play(scheduler, chunks);
  }
  EXPECT_EQ(counts, (std::vector<std::int64_t>{8, 8, 4}));
}

TEST(Scheduler, MixesDecodingLanesWithAChunkOfAPrompt) {
  Scheduler scheduler(3, 8, 100);
  scheduler.admit(sequence(2, 10));
  play(scheduler, scheduler.compose());
  scheduler.admit(sequence(30, 1));
  const auto chunks = scheduler.compose();
  ASSERT_EQ(chunks.size(), 2u);
  EXPECT_EQ(chunks[0].count, 1);
  EXPECT_EQ(chunks[1].count, 7);
}

TEST(Scheduler, AlwaysHasOneRowForEachDecodingLaneEvenWithTheSmallestBudget) {
  Scheduler scheduler(4, 4, 100);
  for (int i = 0; i < 4; ++i) scheduler.admit(sequence(1, 5));
  EXPECT_EQ(rows(scheduler.compose()), 4);
}

TEST(Scheduler, PreemptsTheNewestSequenceWhenPagesRunOutAndFinishesAll) {
  Scheduler scheduler(3, 64, 4);  // 64 tokens for three sequences of 40
  for (int i = 0; i < 3; ++i) scheduler.admit(sequence(10, 30));
  Sequence* const oldest = scheduler.compose().front().sequence;
  EXPECT_EQ(oldest->order, 0u);
  int passes = 0;
  std::vector<std::uint64_t> finished;
  while (scheduler.active() > 0 && ++passes < 500) {
    const auto chunks = scheduler.compose();
    ASSERT_FALSE(chunks.empty());
    play(scheduler, chunks);
  }
  EXPECT_EQ(scheduler.active(), 0);
  EXPECT_GT(scheduler.preemptions(), 0);
  expect_all_free(scheduler, 4);
}

TEST(Scheduler, NeverPreemptsTheOldestSequence) {
  Scheduler scheduler(4, 16, 6);
  scheduler.admit(sequence(16, 80));
  for (int i = 0; i < 3; ++i) scheduler.admit(sequence(30, 40));
  std::int64_t computed = 0;
  for (int pass = 0; pass < 60; ++pass) {
    const auto chunks = scheduler.compose();
    ASSERT_EQ(chunks.front().sequence->order, 0u);
    EXPECT_EQ(chunks.front().first, computed);
    computed += chunks.front().count;
    play(scheduler, chunks);
  }
}

TEST(Scheduler, NoPageBelongsToTwoSequencesAndEveryRowHasItsPage) {
  std::mt19937 random(7);
  Scheduler scheduler(5, 24, 12);
  int left = 60;
  int passes = 0;
  while (left > 0 || scheduler.active() > 0) {
    ASSERT_LT(++passes, 20000);
    while (left > 0 && scheduler.free_lanes() > 0) {
      const std::int64_t prompt = 1 + static_cast<std::int64_t>(random() % 90);
      scheduler.admit(sequence(prompt, 1 + static_cast<std::int64_t>(random() % 60)));
      --left;
    }
    const auto chunks = scheduler.compose();
    ASSERT_FALSE(chunks.empty());
    ASSERT_LE(rows(chunks), 24);
    std::vector<int> users(12, 0);
    for (const Chunk& c : chunks) {
      ASSERT_GE(static_cast<std::int64_t>(c.sequence->pages.size()) * kKvPageTokens,
                c.first + c.count);
      for (std::int32_t page : c.sequence->pages) ++users[static_cast<std::size_t>(page)];
    }
    for (int n : users) ASSERT_LE(n, 1);
    play(scheduler, chunks);
  }
  expect_all_free(scheduler, 12);
}

}  // namespace
}  // namespace zi
