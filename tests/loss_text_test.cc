// What rank 0 says of ranks that fell silent.

#include "comm/loss_text.h"

#include <gtest/gtest.h>

namespace zi::test {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kFrom(14000), kBeat(1000);

/// Two ranks a host, rank 0 on the first.
std::vector<RankSilence> two_a_host(int hosts) {
  std::vector<RankSilence> ranks;
  for (int r = 0; r < 2 * hosts; ++r) {
    ranks.push_back(
        {.rank = r, .host = r / 2, .host_name = "host" + std::to_string(r / 2), .silent = {}});
  }
  return ranks;
}

std::string said(const std::vector<RankSilence>& ranks, int lost) {
  return silence_text(ranks, lost, kFrom, kBeat);
}

TEST(LossText, AHostIsNamedWithItsRanksAndTheLongestTime) {
  auto ranks = two_a_host(3);
  ranks[2].silent = milliseconds(15600);
  ranks[3].silent = milliseconds(16200);
  EXPECT_EQ(said(ranks, 3),
            "host host1 (ranks 2 and 3) has been silent for 16 s: the host, its network or its "
            "processes have stopped");
}

TEST(LossText, ARankThatWasSilentForHalfTheLimitIsNotAccused) {
  auto ranks = two_a_host(3);
  ranks[2].silent = ranks[3].silent = milliseconds(16100);
  ranks[4].silent = milliseconds(9000);
  EXPECT_EQ(said(ranks, 2).find("host2"), std::string::npos) << said(ranks, 2);
}

TEST(LossText, TheRankThatWasLostIsNamedWhateverItsTime) {
  auto ranks = two_a_host(2);
  ranks[3].silent = milliseconds(3000);
  EXPECT_EQ(said(ranks, 3),
            "rank 3 on host1 has been silent for 3 s, and other ranks there have not");
}

TEST(LossText, EachHasItsOwnTimeWhereTheyDiffer) {
  auto ranks = two_a_host(4);
  ranks[2].silent = ranks[3].silent = milliseconds(17000);
  ranks[5].silent = milliseconds(14500);
  EXPECT_EQ(said(ranks, 2),
            "host host1 (ranks 2 and 3) has been silent for 17 s and rank 5 on host2 for 14 s, and "
            "other ranks there have not");
}

TEST(LossText, WhereAllOtherHostsAreSilentItIsRankZerosNetwork) {
  auto ranks = two_a_host(3);
  for (std::size_t r = 2; r < ranks.size(); ++r) ranks[r].silent = milliseconds(16000);
  EXPECT_EQ(said(ranks, 4),
            "host host1 (ranks 2 and 3) and host host2 (ranks 4 and 5) have been silent for 16 s: "
            "the network of host0 may be down");
}

TEST(LossText, HostsOfEqualNamesAreToldApartByTheirRanks) {
  auto ranks = two_a_host(3);
  for (RankSilence& r : ranks) r.host_name = "localhost";
  ranks[2].silent = ranks[3].silent = milliseconds(16000);
  EXPECT_EQ(said(ranks, 2),
            "ranks 2 and 3 on localhost have been silent for 16 s: the host, its network or its "
            "processes have stopped");
}

}  // namespace
}  // namespace zi::test
