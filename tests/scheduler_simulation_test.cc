// Random work for a scheduler over a cache that stores for every key which tokens it was computed
// from: so each row can tell whether the pages that it is given hold what it needs.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "engine/scheduler.h"

namespace zi {
namespace {

/// Of tokens up to a position, as a key depends on all of them.
std::uint64_t mix(std::uint64_t before, std::int32_t token) {
  return (before ^ static_cast<std::uint64_t>(token)) * 0x9e3779b97f4a7c15u + 0x7f4a7c15u;
}

struct Setting {
  std::int64_t lanes;
  std::int64_t pass_tokens;
  std::int64_t pages;
  bool share;
};

class Simulation {
 public:
  Simulation(const Setting& setting, std::uint32_t seed)
      : setting_(setting),
        scheduler_(setting.lanes, setting.pass_tokens, setting.pages, setting.share),
        random_(seed),
        keys_(static_cast<std::size_t>(setting.pages * kKvPageTokens), 0) {}

  /// Runs `count` sequences to their end.
  void run(int count) {
    int passes = 0;
    for (int left = count; left > 0 || scheduler_.active() > 0;) {
      for (; left > 0 && scheduler_.free_lanes() > 0 && random_() % 4 != 0; --left) admit();
      if (scheduler_.active() == 0) continue;
      run_pass();
      if (testing::Test::HasFatalFailure()) return;
      ASSERT_LT(++passes, 400 * count) << "no end";
    }
    EXPECT_EQ(scheduler_.pages().held(), 0);
    EXPECT_EQ(scheduler_.pages().idle(), setting_.pages);
  }

  std::int64_t preemptions() const { return scheduler_.preemptions(); }
  std::int64_t cached_tokens() const { return scheduler_.cached_tokens(); }
  std::int64_t prompt_rows() const { return prompt_rows_; }
  std::int64_t prompt_tokens() const { return prompt_tokens_; }

 private:
  std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(random_()) % n; }

  /// The beginning of an earlier sequence, answer included, and some tokens of its own.
  std::vector<std::int32_t> make_prompt() {
    std::vector<std::int32_t> prompt;
    const std::int64_t most = scheduler_.max_sequence_tokens() - 40;
    if (!texts_.empty() && below(4) != 0) {
      const auto& earlier = texts_[static_cast<std::size_t>(below(std::ssize(texts_)))];
      const auto length = std::min<std::int64_t>(1 + below(std::ssize(earlier)), most - 1);
      prompt.assign(earlier.begin(), earlier.begin() + length);
    }
    if (prompt.empty() || below(3) != 0) {
      const std::int64_t own = 1 + below(std::min<std::int64_t>(60, most - std::ssize(prompt)));
      for (std::int64_t i = 0; i < own; ++i) prompt.push_back(static_cast<std::int32_t>(below(3)));
    }
    texts_.push_back(prompt);
    return prompt;
  }

  void admit() {
    static const Tokenizer tokenizer = Tokenizer::bytes();
    auto s = std::make_unique<Sequence>(Prompt{}, tokenizer);
    s->tokens = make_prompt();
    s->prompt.index = texts_.size() - 1;
    s->prompt_tokens = std::ssize(s->tokens);
    s->max_new_tokens = 1 + below(40);
    s->may_share = below(8) != 0;
    prompt_tokens_ += s->prompt_tokens;
    scheduler_.admit(std::move(s));
  }

  std::uint64_t& key(const Sequence& s, std::int64_t position) {
    const std::int64_t page = s.pages.at(static_cast<std::size_t>(position / kKvPageTokens));
    return keys_.at(static_cast<std::size_t>(page * kKvPageTokens + position % kKvPageTokens));
  }

  void run_pass() {
    const std::vector<Chunk> chunks = scheduler_.compose();
    check_rows(chunks);
    check_pages(chunks);
    if (testing::Test::HasFatalFailure()) return;
    // As a layer does: all rows store their keys, then all rows look at those of their sequence.
    for (const Chunk& c : chunks) {
      std::uint64_t of = 0;
      for (std::int64_t at = 0; at < c.first + c.count; ++at) {
        of = mix(of, c.sequence->tokens[static_cast<std::size_t>(at)]);
        if (at >= c.first) key(*c.sequence, at) = of;
      }
    }
    for (const Chunk& c : chunks) {
      std::uint64_t of = 0;
      for (std::int64_t at = 0; at < c.first + c.count; ++at) {
        of = mix(of, c.sequence->tokens[static_cast<std::size_t>(at)]);
        ASSERT_EQ(key(*c.sequence, at), of) << "position " << at;
      }
    }
    for (const Chunk& c : chunks) {
      const bool draws = c.last();
      scheduler_.advance(c);
      if (draws) draw(*c.sequence);
    }
  }

  void draw(Sequence& s) {
    // Mostly what the tokens so far say: sequences that are alike go on alike.
    std::uint64_t of = 0;
    for (const std::int32_t token : s.tokens) of = mix(of, token);
    s.tokens.push_back(static_cast<std::int32_t>((below(20) == 0 ? random_() : of >> 20) % 3));
    s.not_finite = below(200) == 0;
    const bool cancelled = below(100) == 0;
    if (s.new_tokens() < s.max_new_tokens && !s.not_finite && !cancelled) return;
    if (!s.may_share || !setting_.share) {
      EXPECT_EQ(s.cached_tokens, 0);
    }
    EXPECT_LT(s.cached_tokens, s.prompt_tokens);
    texts_[s.prompt.index] = s.tokens;
    reached_.erase(&s);
    scheduler_.retire(&s);
  }

  /// What runs: a row of each lane that decodes, no more than fit, each sequence's next ones.
  void check_rows(const std::vector<Chunk>& chunks) {
    ASSERT_FALSE(chunks.empty());
    std::int64_t rows = 0;
    std::uint64_t oldest = ~std::uint64_t{0};
    scheduler_.all_of([&](const Sequence& s) {
      oldest = std::min(oldest, s.order);
      return true;
    });
    ASSERT_EQ(chunks.front().sequence->order, oldest) << "the oldest always goes on";
    for (const Chunk& c : chunks) {
      ASSERT_GE(c.count, 1);
      ASSERT_EQ(c.first, c.sequence->computed);
      ASSERT_LE(c.first + c.count, std::ssize(c.sequence->tokens));
      rows += c.count;
      const std::int64_t prompt = c.sequence->prompt_tokens;
      prompt_rows_ += std::max<std::int64_t>(0, std::min(c.first + c.count, prompt) - c.first);
      if (!c.sequence->may_share || !setting_.share) {
        std::int64_t& reached = reached_[c.sequence];
        ASSERT_TRUE(c.first == 0 || c.first == reached) << "every row is computed";
        reached = c.first + c.count;
      }
    }
    ASSERT_LE(rows, std::max(setting_.pass_tokens, setting_.lanes));
  }

  /// Who holds pages: everyone the ones that it needs, each of which all its holders agree about.
  void check_pages(const std::vector<Chunk>& chunks) {
    for (const Chunk& c : chunks) {
      ASSERT_GE(std::ssize(c.sequence->pages) * kKvPageTokens, c.first + c.count);
    }
    std::vector<std::int64_t> holders(static_cast<std::size_t>(setting_.pages), 0);
    std::map<KvPages::Page, std::vector<std::int32_t>> contents;
    scheduler_.all_of([&](const Sequence& s) {
      EXPECT_EQ(std::set(s.pages.begin(), s.pages.end()).size(), s.pages.size());
      for (std::size_t i = 0; i < s.pages.size(); ++i) {
        ++holders[static_cast<std::size_t>(s.pages[i])];
        const std::size_t end = (i + 1) * kKvPageTokens;
        const bool full = end <= s.tokens.size();
        std::vector<std::int32_t> mine(
            s.tokens.begin(),
            full ? s.tokens.begin() + static_cast<std::ptrdiff_t>(end) : s.tokens.end());
        const auto [other, alone] = contents.try_emplace(s.pages[i], mine);
        EXPECT_TRUE(alone || (full && other->second == mine)) << "page " << s.pages[i];
        EXPECT_TRUE(alone || setting_.share);
      }
      return true;
    });
    for (std::int64_t page = 0; page < setting_.pages; ++page) {
      ASSERT_EQ(scheduler_.pages().holders(static_cast<KvPages::Page>(page)),
                holders[static_cast<std::size_t>(page)]);
    }
    ASSERT_EQ(scheduler_.pages().held(), setting_.pages - std::ranges::count(holders, 0));
  }

  Setting setting_;
  Scheduler scheduler_;
  std::mt19937 random_;
  std::vector<std::uint64_t> keys_;                  // of each place in the pages
  std::vector<std::vector<std::int32_t>> texts_;     // of all sequences so far
  std::map<const Sequence*, std::int64_t> reached_;  // by those that share nothing
  std::int64_t prompt_rows_ = 0;
  std::int64_t prompt_tokens_ = 0;
};

TEST(SchedulerSimulation, EveryRowFindsTheKeysOfItsOwnTokensAndEverySequenceEnds) {
  for (const Setting& setting :
       {Setting{5, 24, 12, true}, Setting{8, 64, 20, true}, Setting{3, 7, 9, true},
        Setting{16, 30, 20, true}, Setting{6, 200, 200, true}, Setting{5, 24, 12, false}}) {
    std::int64_t preemptions = 0;
    std::int64_t cached = 0;
    for (std::uint32_t seed = 0; seed < 40; ++seed) {
      Simulation simulation(setting, seed);
      simulation.run(60);
      ASSERT_FALSE(HasFailure()) << setting.lanes << " lanes, " << setting.pages << " pages, seed "
                                 << seed;
      preemptions += simulation.preemptions();
      cached += simulation.cached_tokens();
    }
    EXPECT_EQ(preemptions > 200, setting.pages < 200) << preemptions;
    EXPECT_EQ(cached > 4000, setting.share);
  }
}

TEST(SchedulerSimulation, WithoutPreemptionsAPromptTokenIsComputedOrTakenOver) {
  Simulation simulation({6, 200, 400, true}, 3);
  simulation.run(100);
  ASSERT_EQ(simulation.preemptions(), 0);
  EXPECT_EQ(simulation.prompt_rows() + simulation.cached_tokens(), simulation.prompt_tokens());
  EXPECT_GT(simulation.cached_tokens(), simulation.prompt_tokens() / 4);
}

}  // namespace
}  // namespace zi
