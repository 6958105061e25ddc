// What a RecentMap keeps.

#include "zero_infer/recent_map.h"

#include <gtest/gtest.h>

#include <string>

namespace zi {
namespace {

TEST(RecentMap, KeepsWhatIsUsedWhileOthersComeAndGo) {
  RecentMap<int, std::string> map(4);
  map.add(-1) = "hot";
  map.add(-2) = "warm";
  for (int other = 0; other < 100; ++other) {
    ASSERT_NE(map.find(-1), nullptr) << other;
    EXPECT_EQ(*map.find(-1), "hot");
    if (other % 2 ==
        0) {  // before two others have come, and with the hot one there is room for two
      ASSERT_NE(map.find(-2), nullptr) << other;
    }
    map.add(other);
    EXPECT_LE(map.size(), 4u);
  }
  EXPECT_EQ(*map.find(-2), "warm");
  EXPECT_NE(map.find(99), nullptr);
  EXPECT_EQ(map.find(97), nullptr) << "of those that were used once the oldest has gone";
}

TEST(RecentMap, ANewValueIsNoneThatWasThereBefore) {
  RecentMap<int, std::string> map(1);
  map.add(1) = "first";
  EXPECT_EQ(map.add(2), "");
  EXPECT_EQ(map.find(1), nullptr);
  EXPECT_EQ(map.add(1), "");
  EXPECT_EQ(map.size(), 1u);
}

}  // namespace
}  // namespace zi
