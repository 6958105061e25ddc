#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <numeric>

#include "zero_infer/ops.h"

namespace zi {
namespace {

const Tokenizer& tokenizer() {
  static const Tokenizer instance = Tokenizer::bytes();
  return instance;
}

std::unique_ptr<Sequence> sequence(std::vector<std::int32_t> prompt, std::int64_t new_tokens) {
  auto s = std::make_unique<Sequence>(Prompt{}, tokenizer());
  s->tokens = std::move(prompt);
  s->prompt_tokens = std::ssize(s->tokens);
  s->max_new_tokens = new_tokens;
  return s;
}

/// So many tokens from `first` on: two lists of different firsts have nothing in common.
std::vector<std::int32_t> tokens(std::int64_t count, std::int32_t first) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

/// One that begins like no other.
std::unique_ptr<Sequence> sequence(std::int64_t prompt_tokens, std::int64_t new_tokens) {
  static std::int32_t first = 0;
  return sequence(tokens(prompt_tokens, first += 10000), new_tokens);
}

/// The same beginning, and `own` tokens from `first` on.
std::unique_ptr<Sequence> sequence_after(const std::vector<std::int32_t>& beginning,
                                         std::int64_t own, std::int32_t first,
                                         std::int64_t new_tokens = 1) {
  std::vector<std::int32_t> ids = beginning;
  const auto rest = tokens(own, first);
  ids.insert(ids.end(), rest.begin(), rest.end());
  return sequence(std::move(ids), new_tokens);
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
  Scheduler scheduler(2, 8, 100, true);
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
  Scheduler scheduler(3, 8, 100, true);
  scheduler.admit(sequence(2, 10));
  play(scheduler, scheduler.compose());
  scheduler.admit(sequence(30, 1));
  const auto chunks = scheduler.compose();
  ASSERT_EQ(chunks.size(), 2u);
  EXPECT_EQ(chunks[0].count, 1);
  EXPECT_EQ(chunks[1].count, 7);
}

TEST(Scheduler, AlwaysHasOneRowForEachDecodingLaneEvenWithTheSmallestBudget) {
  Scheduler scheduler(4, 4, 100, true);
  for (int i = 0; i < 4; ++i) scheduler.admit(sequence(1, 5));
  EXPECT_EQ(rows(scheduler.compose()), 4);
}

TEST(Scheduler, PreemptsTheNewestSequenceWhenPagesRunOutAndFinishesAll) {
  Scheduler scheduler(3, 64, 4, true);  // 64 tokens for three sequences of 40
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
  Scheduler scheduler(4, 16, 6, true);
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

/// Plays until nobody is active; the rows that ran.
std::int64_t play_to_the_end(Scheduler& scheduler) {
  std::int64_t all = 0;
  while (scheduler.active() > 0) {
    const auto chunks = scheduler.compose();
    if (chunks.empty()) {
      ADD_FAILURE() << "a pass without rows";
      return all;
    }
    all += rows(chunks);
    play(scheduler, chunks);
  }
  return all;
}

TEST(PrefixSharing, SequencesThatBeginAlikeComputeTheirBeginningOnceInPassesThatAreFull) {
  Scheduler scheduler(64, 512, 1000, true);
  const auto beginning = tokens(2000, 1);
  for (std::int32_t i = 0; i < 64; ++i) {
    scheduler.admit(sequence_after(beginning, 10, 10000 + 100 * i));
  }
  std::vector<std::int64_t> passes;
  while (scheduler.active() > 0) {
    const auto chunks = scheduler.compose();
    passes.push_back(rows(chunks));
    play(scheduler, chunks);
  }
  // Nobody waits for a page that an earlier row of the same pass fills.
  ASSERT_EQ(std::accumulate(passes.begin(), passes.end(), std::int64_t{0}), 2000 + 64 * 10);
  EXPECT_EQ(passes, (std::vector<std::int64_t>{512, 512, 512, 512, 512, 80}));
  EXPECT_EQ(scheduler.cached_tokens(), 63 * 2000);
}

TEST(PrefixSharing, EachComputesAllWhenItIsOff) {
  Scheduler scheduler(8, 512, 1000, false);
  for (std::int32_t i = 0; i < 8; ++i) {
    scheduler.admit(sequence_after(tokens(200, 1), 10, 10000 + 100 * i));
  }
  EXPECT_EQ(play_to_the_end(scheduler), 8 * 210);
  EXPECT_EQ(scheduler.cached_tokens(), 0);
  EXPECT_EQ(scheduler.pages().cached(), 0);
}

TEST(PrefixSharing, TheLastTokenIsComputedForItsLogits) {
  for (const std::int64_t length : {31, 32, 33}) {
    Scheduler scheduler(2, 512, 100, true);
    Sequence* const first = scheduler.admit(sequence(tokens(length, 1), 2));
    Sequence* const second = scheduler.admit(sequence(tokens(length, 1), 2));
    const auto chunks = scheduler.compose();
    ASSERT_EQ(chunks.size(), 2u);
    const std::int64_t shared = (length - 1) / kKvPageTokens * kKvPageTokens;
    EXPECT_EQ(chunks[1].first, shared);
    EXPECT_EQ(chunks[1].count, length - shared);
    EXPECT_EQ(second->cached_tokens, shared);
    EXPECT_EQ(first->cached_tokens, 0);
  }
}

TEST(PrefixSharing, PagesThatTwoSequencesComputedBecomeOne) {
  Scheduler scheduler(2, 512, 100, true);
  Sequence* const first = scheduler.admit(sequence(tokens(32, 1), 5));
  Sequence* const second = scheduler.admit(sequence(tokens(32, 1), 5));
  const auto chunks = scheduler.compose();
  EXPECT_NE(first->pages[1], second->pages[1]) << "both write the last page, for their logits";
  play(scheduler, chunks);
  EXPECT_EQ(first->pages, second->pages);
  EXPECT_EQ(scheduler.pages().held(), 2);
}

TEST(PrefixSharing, APromptThatContinuesAnAnswerTakesItsPagesToo) {
  Scheduler scheduler(1, 512, 100, true);
  scheduler.admit(sequence(tokens(20, 1), 30));
  play_to_the_end(scheduler);
  auto turn = tokens(20, 1);
  turn.insert(turn.end(), 30, 66);  // as `play` draws them
  Sequence* const next = scheduler.admit(sequence_after(turn, 10, 500));
  const auto chunks = scheduler.compose();
  EXPECT_EQ(chunks.front().first, 48) << "of 49: the last token's keys were never computed";
  EXPECT_EQ(next->cached_tokens, 48);
}

TEST(PrefixSharing, APreemptedSequenceTakesItsOwnPagesBack) {
  Scheduler scheduler(2, 64, 6, true);
  scheduler.admit(sequence(16, 40));
  play(scheduler, scheduler.compose());
  Sequence* const newer = scheduler.admit(sequence(60, 30));
  std::vector<std::int64_t> starts;
  while (scheduler.active() > 0) {
    const auto chunks = scheduler.compose();
    for (const Chunk& c : chunks) {
      if (c.sequence == newer && c.count > 1) starts.push_back(c.first);
    }
    play(scheduler, chunks);
  }
  EXPECT_EQ(scheduler.preemptions(), 1);
  // The older one has needed two of its four pages: the last ones went.
  EXPECT_EQ(starts, (std::vector<std::int64_t>{0, 32}));
  EXPECT_EQ(scheduler.cached_tokens(), 0) << "what it had computed itself";
}

TEST(PrefixSharing, SequencesThatWantSomethingOfEachRowComputeAllAndOthersMayTakeTheirPages) {
  Scheduler scheduler(3, 512, 100, true);
  const auto beginning = tokens(100, 1);
  for (std::int32_t i = 0; i < 3; ++i) {
    auto s = sequence_after(beginning, 10, 1000 + 100 * i);
    s->may_share = i == 2;
    scheduler.admit(std::move(s));
  }
  const auto chunks = scheduler.compose();
  ASSERT_EQ(chunks.size(), 3u);
  EXPECT_EQ(chunks[0].count, 110);
  EXPECT_EQ(chunks[1].count, 110);
  EXPECT_EQ(chunks[2].first, 96);
  for (const Chunk& c : chunks) scheduler.advance(c);
  EXPECT_EQ(scheduler.pages().held(), 6 + 3) << "those of the beginning are held together";
}

TEST(PrefixSharing, PagesOfASequenceThatIsNotFiniteAreForgotten) {
  Scheduler scheduler(1, 512, 100, true);
  for (const bool not_finite : {true, false}) {
    Sequence* const s = scheduler.admit(sequence(tokens(100, 1), 1));
    const auto chunks = scheduler.compose();
    EXPECT_EQ(chunks.front().first, 0);
    scheduler.advance(chunks.front());
    s->not_finite = not_finite;
    scheduler.retire(s);
  }
  scheduler.admit(sequence(tokens(100, 1), 1));
  EXPECT_EQ(scheduler.compose().front().first, 96);
}

TEST(PrefixSharing, CachedPagesAreRoomForOthers) {
  Scheduler scheduler(1, 512, 8, true);
  for (int i = 0; i < 5; ++i) {
    scheduler.admit(sequence(8 * kKvPageTokens - 1, 1));  // each needs every page
    play_to_the_end(scheduler);
  }
  EXPECT_EQ(scheduler.preemptions(), 0);
  EXPECT_EQ(scheduler.pages().idle(), 8);
  EXPECT_EQ(scheduler.pages().cached(), 7);
}

TEST(PrefixSharing, ASequenceThatStartsLeavesTheOldersPagesAlone) {
  Scheduler scheduler(3, 512, 8, true);
  scheduler.admit(sequence(tokens(64, 1), 40));  // 4 pages, then up to 7
  play(scheduler, scheduler.compose());
  // Has known pages, but not room for all of its tokens: it takes none before it can run.
  Sequence* const waiting = scheduler.admit(sequence_after(tokens(48, 1), 80, 1000));
  const auto chunks = scheduler.compose();
  EXPECT_EQ(chunks.size(), 1u);
  EXPECT_TRUE(waiting->pages.empty());
  EXPECT_EQ(scheduler.pages().held(), 5);
  play(scheduler, chunks);
  play_to_the_end(scheduler);
  EXPECT_EQ(scheduler.cached_tokens(), 48);
}

}  // namespace
}  // namespace zi
