#include "engine/travel_trial.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace zi {
namespace {

using testing::HasSubstr;

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

TEST(RowsToStay, BeyondWhatWasMeasuredFollowTheLineThroughTheLastTwo) {
  // Gathered 10 + rows / 16, staying 2 + rows / 4: even at 42.
  const TravelTimes times[] = {{1, 10, 2}, {4, 10.25, 3}, {16, 11, 6}};
  EXPECT_EQ(rows_to_stay(times, 512), 42);
  EXPECT_EQ(rows_to_stay(times, 30), 30);
  const TravelTimes parallel[] = {{1, 10, 3}, {16, 11, 4}}, apart[] = {{1, 10, 3}, {16, 12, 4}};
  EXPECT_EQ(rows_to_stay(parallel, 512), 512);
  EXPECT_EQ(rows_to_stay(apart, 512), 512);
  const TravelTimes one[] = {{1, 10, 3}};
  EXPECT_EQ(rows_to_stay(one, 512), 1) << "nothing is known of more";
}

TEST(TrialRepeats, AreAsManyAsFitInATenthOfASecond) {
  EXPECT_EQ(trial_repeats(0, 1), 5);
  EXPECT_EQ(trial_repeats(0.001, 1), 5);
  EXPECT_EQ(trial_repeats(0.04, 1), 2);
  EXPECT_EQ(trial_repeats(0.3, 1), 1);
  EXPECT_EQ(trial_repeats(0.3, 2), 2);
  EXPECT_EQ(trial_repeats(3, 1), 0);
  EXPECT_EQ(trial_repeats(3, 2), 1);
}

/// Passes of 4 blocks that take so long, repeated as in a trial on the CPU backend.
TrialTime trial_of(double block) {
  return {.block = block, .spent = 4 * block * std::max(1, trial_repeats(4 * block, 1))};
}

std::vector<std::int64_t> rows_of(const std::vector<TravelTimes>& times) {
  std::vector<std::int64_t> rows;
  for (const TravelTimes& t : times) rows.push_back(t.rows);
  return rows;
}

TEST(MeasureTravel, GoesUpToWhereGatheringIsBetterOrToTheRowsOfAPass) {
  // A block gathered in 1 ms, and 10 us for each row that stays.
  const auto measure = [](std::int64_t rows, bool stay) {
    return trial_of(stay ? 1e-5 * static_cast<double>(rows) : 1e-3);
  };
  EXPECT_THAT(rows_of(measure_travel(2048, measure)), testing::ElementsAre(1, 4, 16, 64, 256));
  EXPECT_THAT(rows_of(measure_travel(50, measure)), testing::ElementsAre(1, 4, 16, 50));
  EXPECT_THAT(rows_of(measure_travel(1, measure)), testing::ElementsAre(1));
  EXPECT_NEAR(static_cast<double>(rows_to_stay(measure_travel(2048, measure), 2048)), 100, 1);
}

TEST(MeasureTravel, IsNotEndedByOtherWorkOfTheMachine) {
  int calls = 0;
  const auto measure = [&](std::int64_t rows, bool stay) {
    // In the midst of the second row count.
    if (++calls == 4) return trial_of(0.03);
    return trial_of(stay ? 1e-5 * static_cast<double>(rows) : 1e-3);
  };
  EXPECT_NEAR(static_cast<double>(rows_to_stay(measure_travel(2048, measure), 2048)), 100, 1);
}

TEST(MeasureTravel, EndsSoonOnASlowMachineAndStillDecides) {
  // Even at 301 rows, whatever the machine does in a second.
  for (const double slowness : {1e-5, 1e-3, 1e-2, 0.1, 1.0, 10.0}) {
    double spent = 0, first = 0;
    const auto measure = [&](std::int64_t rows, bool stay) {
      const auto r = static_cast<double>(rows);
      const TrialTime time = trial_of(slowness * (stay ? 0.1 + 0.01 * r : 1.6 + 0.005 * r));
      spent += time.spent;
      if (rows == 1) first += time.spent;
      return time;
    };
    const auto times = measure_travel(2048, measure);
    EXPECT_NEAR(static_cast<double>(rows_to_stay(times, 2048)), 300, 1);
    EXPECT_LT(spent, std::max(2.5, 2.5 * first)) << slowness;
  }
}

TEST(MeasureTravel, IsToldWithBothTimes) {
  const TravelTimes stays[] = {{1, 0.010, 0.002}, {4, 0.010, 0.012}};
  EXPECT_EQ(describe(stays, 3, {false, false}, 0.416),
            "weights stay, and activations travel, in passes of up to 3 rows a rank: with 4 rows a "
            "block takes 12.000 ms so, and 10.000 ms gathered (measured in 0.42 s)");
  const TravelTimes gathers[] = {{1, 0.010, 0.012}};
  EXPECT_EQ(describe(gathers, 0, {false, false}, 1),
            "weights travel in every pass: with 1 row a block takes 10.000 ms so, and 12.000 ms "
            "where they stay (measured in 1.00 s)");
  const TravelTimes replicas[] = {{1, 0.010, 0.012}};
  EXPECT_THAT(describe(replicas, 0, {true, true}, 1),
              HasSubstr("every rank multiplies all weights in every pass: with 1 row"));
  EXPECT_THAT(describe(stays, 3, {true, true}, 1),
              HasSubstr("and 10.000 ms where every rank multiplies all weights (measured"));
  EXPECT_THAT(describe(stays, 3, {true, false}, 1),
              HasSubstr("and 10.000 ms with 1 of 2 blocks gathered (measured"));
}

TEST(MeasureTravel, CountsGathersOnlyOfBlocksThatAreNotReplicated) {
  // Gathers take longer than compute: until replicas leave few enough of them.
  EXPECT_DOUBLE_EQ(block_seconds(0.010, 0.004, 0, 30), 0.010);
  EXPECT_DOUBLE_EQ(block_seconds(0.010, 0.004, 15, 30), 0.005);
  EXPECT_DOUBLE_EQ(block_seconds(0.010, 0.004, 24, 30), 0.004);
  EXPECT_DOUBLE_EQ(block_seconds(0.010, 0.004, 30, 30), 0.004);
  EXPECT_DOUBLE_EQ(block_seconds(0.010, 0.010, 10, 30), 0.010) << "compute hides gathers already";
}

}  // namespace
}  // namespace zi
