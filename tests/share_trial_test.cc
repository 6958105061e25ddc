#include "engine/share_trial.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "engine/host_shares.h"

namespace zi {
namespace {

using ::testing::HasSubstr;

/// A link that takes `link` for all rows, and a host that takes `start`, and `host` for all rows.
struct Machine {
  double link, start, host;
  double seconds(double share) const {
    const double of_host = share == 0 ? 0 : start + host * share;
    return std::max(link * (1 - share), of_host);
  }
  double best() const { return std::min(link, link * (start + host) / (link + host)); }
};

TEST(BestShare, IsWhereLinkAndHostTakeAsLong) {
  for (const Machine& m : {Machine{7, 0, 7}, Machine{7, 1, 4}, Machine{7, 0.5, 20},
                           Machine{7, 2, 100}, Machine{7, 0.1, 0.5}}) {
    int tries = 0;
    const ShareTime best = best_share([&](double share) {
      ++tries;
      return m.seconds(share);
    });
    EXPECT_NEAR(best.seconds, m.best(), 0.04 * m.best()) << m.start << " " << m.host;
    EXPECT_DOUBLE_EQ(best.seconds, m.seconds(best.share));
    EXPECT_EQ(best.without, 7);
    EXPECT_LE(tries, 6);
  }
}

TEST(BestShare, IsFoundWhereTheHostIsSlowerBesideTheLink) {
  const auto seconds = [](double share) {
    const double link = 7 * (1 - share);
    const double host = share == 0 ? 0 : 0.4 + (share == 1 ? 9 : 14) * share;
    return std::max(link, host);
  };
  const ShareTime best = best_share(seconds);
  EXPECT_NEAR(best.share, 6.6 / 21, 0.02);
  EXPECT_LT(best.seconds, 7 * (1 - 6.6 / 21) * 1.03);
}

TEST(BestShare, IsNoneWhereTheHostGainsNothingAndAllWhereTheLinkDoes) {
  EXPECT_EQ(best_share([](double share) { return share == 0 ? 7 : 8 + 100 * share; }).share, 0);
  EXPECT_EQ(best_share([](double share) { return share == 0 ? 7 : 6.95; }).share, 0) << "noise";
  EXPECT_EQ(best_share([](double share) { return share == 1 ? 0.1 : 7; }).share, 1);
}

TEST(HostShares, FollowStraightLinesBetweenWhatWasMeasured) {
  EXPECT_EQ(HostShares().at(1), 0);
  EXPECT_EQ(HostShares(0.3).at(1), 0.3);
  EXPECT_EQ(HostShares(0.3).at(5000), 0.3);
  const HostShares shares({{1, 0.4}, {5, 0.2}, {25, 0}});
  EXPECT_DOUBLE_EQ(shares.at(1), 0.4);
  EXPECT_DOUBLE_EQ(shares.at(3), 0.3);
  EXPECT_DOUBLE_EQ(shares.at(15), 0.1);
  EXPECT_DOUBLE_EQ(shares.at(500), 0);
}

TEST(ShareTimes, AreDescribedWithWhatTheyGain) {
  const ShareTime times[] = {{1, 0.41, 0.0043, 0.0073}, {4, 0, 0.0073, 0.0073}};
  EXPECT_THAT(describe(times), HasSubstr("41% with 1 row (4.30 ms a block instead of 7.30), "
                                         "0% with 4 rows"));
}

}  // namespace
}  // namespace zi
