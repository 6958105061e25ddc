#include "engine/travel_trial.h"

#include <gtest/gtest.h>

namespace zi {
namespace {

TEST(RowsToStay, AreThoseUpToWhereBothWaysTakeAsLong) {
  // Gathered 10, whatever the rows; staying 2 + rows: even at 8.
  const TravelTimes times[] = {{1, 10, 3}, {4, 10, 6}, {16, 10, 18}};
  EXPECT_EQ(rows_to_stay(times, 64), 8);
  EXPECT_EQ(rows_to_stay(times, 5), 5) << "more are never in a pass";
}

TEST(RowsToStay, AreNoneWhereOneRowIsDearerAndAllWhereNoneIs) {
  const TravelTimes dear[] = {{1, 2, 3}};
  EXPECT_EQ(rows_to_stay(dear, 64), 0);
  const TravelTimes cheap[] = {{1, 10, 3}, {4, 10, 6}, {6, 10, 10}};
  EXPECT_EQ(rows_to_stay(cheap, 6), 6) << "as long is no loss";
  EXPECT_EQ(rows_to_stay({}, 6), 0);
}

}  // namespace
}  // namespace zi
