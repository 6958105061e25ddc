#include "engine/kv_pages.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

namespace zi {
namespace {

using Page = KvPages::Page;

/// Sixteen tokens that tell which they are.
std::vector<std::int32_t> content(std::int32_t which) {
  std::vector<std::int32_t> ids(kKvPageTokens, 7);
  ids.back() = which;
  return ids;
}

KvPages::Tokens as_tokens(const std::vector<std::int32_t>& ids) {
  return KvPages::Tokens(ids.data(), kKvPageTokens);
}

Page find(const KvPages& pages, Page before, std::int32_t which) {
  const auto ids = content(which);
  return pages.find(before, as_tokens(ids));
}

/// A sequence's pages with these contents, held.
std::vector<Page> make(KvPages& pages, const std::vector<std::int32_t>& contents) {
  std::vector<Page> made;
  Page before = KvPages::kNone;
  for (const std::int32_t which : contents) {
    Page page = find(pages, before, which);
    if (page == KvPages::kNone) {
      page = pages.take();
      const auto ids = content(which);
      pages.name(page, before, as_tokens(ids));
    } else {
      pages.hold(page);
    }
    made.push_back(before = page);
  }
  return made;
}

TEST(KvPages, FindsAPageByItsTokensAndAllBeforeThem) {
  KvPages pages(8);
  const auto first = make(pages, {1, 2});
  const auto second = make(pages, {3, 2});
  EXPECT_EQ(find(pages, KvPages::kNone, 1), first[0]);
  EXPECT_EQ(find(pages, first[0], 2), first[1]);
  EXPECT_EQ(find(pages, second[0], 2), second[1]);
  EXPECT_NE(first[1], second[1]) << "equal tokens after others";
  EXPECT_EQ(find(pages, KvPages::kNone, 2), KvPages::kNone);
  EXPECT_EQ(find(pages, first[0], 3), KvPages::kNone);
  EXPECT_EQ(pages.before(first[1]), first[0]);
  EXPECT_EQ(pages.before(first[0]), KvPages::kNone);
}

TEST(KvPages, AHeldPageIsNotTakenAndTheLastHolderMakesItIdle) {
  KvPages pages(2);
  const auto one = make(pages, {1});
  const auto again = make(pages, {1});
  EXPECT_EQ(one, again);
  EXPECT_EQ(pages.holders(one[0]), 2);
  EXPECT_EQ(pages.idle(), 1);
  pages.release(one);
  EXPECT_EQ(pages.idle(), 1);
  EXPECT_EQ(pages.cached(), 0);
  pages.release(again);
  EXPECT_EQ(pages.idle(), 2);
  EXPECT_EQ(pages.cached(), 1);
  EXPECT_EQ(pages.held(), 0);
  make(pages, {1});
  EXPECT_EQ(pages.cached(), 0);
  EXPECT_EQ(pages.held(), 1);
}

TEST(KvPages, TakesPagesWithoutANameFirstThenThoseGivenBackFirst) {
  KvPages pages(4);
  const auto a = make(pages, {1});
  const auto b = make(pages, {2});
  pages.release(b);
  pages.release(a);
  const Page nameless[] = {pages.take(), pages.take()};
  EXPECT_EQ(pages.cached(), 2);
  pages.release(make(pages, {2}));  // used again: now the last one
  EXPECT_EQ(pages.take(), a[0]);
  EXPECT_EQ(find(pages, KvPages::kNone, 1), KvPages::kNone);
  pages.release(nameless);
  EXPECT_NE(pages.take(), b[0]);
  EXPECT_NE(pages.take(), b[0]);
  EXPECT_EQ(find(pages, KvPages::kNone, 2), b[0]);
  EXPECT_EQ(pages.take(), b[0]);
  EXPECT_EQ(pages.idle(), 0);
}

TEST(KvPages, OfASequenceTheLastPageGoesFirst) {
  KvPages pages(5);
  const auto chain = make(pages, {1, 2, 3});
  const auto branch = make(pages, {1, 2, 4, 5});
  pages.release(branch);
  pages.release(chain);
  EXPECT_EQ(pages.take(), branch[3]);
  EXPECT_EQ(pages.take(), branch[2]);
  EXPECT_EQ(pages.take(), chain[2]);
  EXPECT_EQ(pages.take(), chain[1]);
  EXPECT_EQ(find(pages, KvPages::kNone, 1), chain[0]);
}

TEST(KvPages, AChainIsValidUntilItsLastPageHasAnotherName) {
  KvPages pages(2);
  const auto held = make(pages, {1, 2});
  KvPages::Chain chain = pages.extended({}, held[0]);
  EXPECT_TRUE(pages.is_valid({}));
  chain = pages.extended(chain, held[1]);
  EXPECT_EQ(chain.pages, 2);
  EXPECT_EQ(pages.idle_of(chain), 0);
  pages.release(held);
  EXPECT_TRUE(pages.is_valid(chain));
  EXPECT_EQ(pages.idle_of(chain), 2);
  const auto first = make(pages, {1});
  EXPECT_EQ(pages.idle_of(chain), 1);
  EXPECT_EQ(pages.take(), held[1]);
  EXPECT_FALSE(pages.is_valid(chain)) << "no name";
  pages.name(held[1], first[0], as_tokens(content(2)));
  EXPECT_FALSE(pages.is_valid(chain)) << "written anew, whatever it is called";
}

TEST(KvPages, ForgetsWhatIsNotToBeTrustedUnlessOthersHoldItOrKnowPagesAfterIt) {
  KvPages pages(8);
  const auto bad = make(pages, {1, 2, 3, 4});
  const auto other = make(pages, {1, 2});
  const auto branch = make(pages, {1, 5});
  pages.release(branch);
  pages.release(bad, true);
  EXPECT_EQ(find(pages, bad[2], 4), KvPages::kNone);
  EXPECT_EQ(find(pages, bad[1], 3), KvPages::kNone);
  EXPECT_EQ(find(pages, bad[0], 2), bad[1]) << "held by another one";
  pages.release(other, true);
  EXPECT_EQ(find(pages, bad[0], 2), KvPages::kNone);
  EXPECT_EQ(find(pages, KvPages::kNone, 1), bad[0]) << "another page is known after it";
  EXPECT_EQ(pages.cached(), 2);
  EXPECT_EQ(pages.idle(), 8);
}

/// What a random run holds must be found, and whatever is found must be what it was named for.
TEST(KvPages, NeverGivesAPageForAnotherBeginningThanItsOwn) {
  std::mt19937 random(11);
  KvPages pages(24);
  std::vector<std::vector<Page>> held;
  std::map<Page, std::vector<std::int32_t>> written;  // all contents up to the page's end
  for (int step = 0; step < 20000; ++step) {
    if (!held.empty() && (pages.idle() < 6 || random() % 2 == 0)) {
      const auto which = random() % held.size();
      pages.release(held[which], random() % 8 == 0);
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(which));
      continue;
    }
    std::vector<std::int32_t> contents(1 + random() % 6);
    for (std::int32_t& which : contents) which = static_cast<std::int32_t>(random() % 3);
    std::vector<Page> mine;
    std::vector<std::int32_t> beginning;
    Page before = KvPages::kNone;
    for (const std::int32_t which : contents) {
      beginning.push_back(which);
      Page page = find(pages, before, which);
      if (page != KvPages::kNone) {
        ASSERT_EQ(written.at(page), beginning);
        pages.hold(page);
      } else {
        page = pages.take();
        for (const auto& others : held) ASSERT_EQ(std::ranges::count(others, page), 0);
        pages.name(page, before, as_tokens(content(which)));
        written[page] = beginning;
      }
      mine.push_back(before = page);
    }
    held.push_back(std::move(mine));
    std::vector<std::int64_t> holders(24, 0);
    for (const auto& sequence : held) {
      for (const Page page : sequence) ++holders[static_cast<std::size_t>(page)];
    }
    for (Page page = 0; page < 24; ++page) {
      ASSERT_EQ(pages.holders(page), holders[static_cast<std::size_t>(page)]);
    }
    ASSERT_EQ(pages.held(), 24 - std::ranges::count(holders, 0));
    ASSERT_LE(pages.cached(), pages.idle());
  }
}

}  // namespace
}  // namespace zi
