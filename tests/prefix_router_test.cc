#include "engine/prefix_router.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

namespace zi {
namespace {

Prompt text(std::string text) {
  Prompt prompt;
  prompt.text = std::move(text);
  return prompt;
}

Prompt ids(std::int32_t first, std::size_t count) {
  Prompt prompt;
  prompt.ids.emplace(count);
  std::iota(prompt.ids->begin(), prompt.ids->end(), first);
  return prompt;
}

/// Routes the prompt and takes the lane.
std::size_t deal(PrefixRouter& router, const Prompt& prompt, std::vector<std::int64_t>& free) {
  const std::size_t rank = router.route(prompt, free);
  --free.at(rank);
  return rank;
}

TEST(PrefixRouter, GivesUnknownPromptsToTheRankWithTheMostFreeLanes) {
  PrefixRouter router(3, 1000);
  std::vector<std::int64_t> free = {2, 4, 3};
  std::vector<std::size_t> ranks;
  for (std::int32_t i = 0; i < 9; ++i) ranks.push_back(deal(router, ids(1000 * i, 100), free));
  EXPECT_EQ(ranks, (std::vector<std::size_t>{1, 1, 2, 0, 1, 2, 0, 1, 2}));
}

TEST(PrefixRouter, GivesAPromptToTheRankThatHasItsBeginning) {
  PrefixRouter router(3, 1000);
  const std::string beginning(640, 'a');
  std::vector<std::int64_t> free = {8, 9, 8};
  EXPECT_EQ(deal(router, text(beginning + std::string(64, 'b')), free), 1u);
  EXPECT_EQ(deal(router, ids(0, 160), free), 0u);
  free = {5, 4, 5};
  EXPECT_EQ(deal(router, text(beginning + "something else"), free), 1u);
  free = {5, 4, 5};
  EXPECT_EQ(deal(router, text(std::string(639, 'a')), free), 1u) << "nine blocks of it";
  free = {4, 5, 5};
  EXPECT_EQ(deal(router, ids(0, 170), free), 0u);
  free = {4, 5, 6};
  EXPECT_EQ(deal(router, ids(1, 170), free), 2u) << "other tokens";
  EXPECT_EQ(deal(router, text("b" + beginning), free), 1u) << "the same text elsewhere";
}

TEST(PrefixRouter, PrefersTheLongestBeginning) {
  PrefixRouter router(2, 1000);
  std::vector<std::int64_t> free = {5, 4};
  EXPECT_EQ(deal(router, ids(0, 160), free), 0u);
  free = {1, 50};
  EXPECT_EQ(deal(router, ids(0, 1600), free), 1u);
  free = {5, 4};
  EXPECT_EQ(deal(router, ids(0, 2000), free), 1u);
  free = {5, 4};
  EXPECT_EQ(deal(router, ids(0, 160), free), 0u) << "both have all of it";
}

TEST(PrefixRouter, ABeginningIsWorthSomeLanesAndNoMore) {
  PrefixRouter router(2, 1000);
  std::vector<std::int64_t> free = {9, 8};
  const auto blocks = static_cast<std::size_t>(4 * PrefixRouter::kBlocksOfALane);
  const Prompt prompt = ids(0, blocks * PrefixRouter::kBlockTokens + 1);
  EXPECT_EQ(deal(router, prompt, free), 0u);
  free = {5, 8};
  EXPECT_EQ(router.route(prompt, free), 0u);
  free = {4, 9};
  EXPECT_EQ(router.route(prompt, free), 1u);
}

TEST(PrefixRouter, NeverWaitsForABusyRank) {
  PrefixRouter router(2, 1000);
  std::vector<std::int64_t> free = {2, 1};
  EXPECT_EQ(deal(router, ids(0, 1600), free), 0u);
  free = {0, 1};
  EXPECT_EQ(deal(router, ids(0, 1600), free), 1u);
}

TEST(PrefixRouter, PromptsThatBeginAlikeDoNotLeaveARankFarBehindAndFillAll) {
  PrefixRouter router(4, 1000);
  std::vector<std::int64_t> free(4, 32);
  for (int i = 0; i < 4 * 32; ++i) {
    deal(router, ids(0, 2000), free);  // 125 blocks
    EXPECT_LE(std::ranges::max(free) - std::ranges::min(free), 16);
  }
  EXPECT_EQ(free, std::vector<std::int64_t>(4, 0));
}

TEST(PrefixRouter, ForgetsTheOldestAndOfAPromptTheEndFirst) {
  PrefixRouter router(2, 100);
  std::vector<std::int64_t> free = {2, 1};
  EXPECT_EQ(deal(router, ids(0, 80 * 16), free), 0u);
  free = {2, 1};
  EXPECT_EQ(deal(router, ids(50000, 60 * 16), free), 0u);
  // 40 of the first one's blocks are left: worth five lanes.
  free = {2, 6};
  EXPECT_EQ(router.route(ids(0, 80 * 16), free), 0u);
  free = {2, 1};
  EXPECT_EQ(deal(router, ids(90000, 100 * 16), free), 0u);
  free = {2, 3};
  EXPECT_EQ(router.route(ids(50000, 60 * 16), free), 1u) << "nothing is left";
}

TEST(PrefixRouter, CanBeOff) {
  PrefixRouter router(2, 0);
  std::vector<std::int64_t> free = {2, 1};
  EXPECT_EQ(deal(router, ids(0, 1600), free), 0u);
  free = {1, 2};
  EXPECT_EQ(deal(router, ids(0, 1600), free), 1u);
}

}  // namespace
}  // namespace zi
