#include "engine/pass_times.h"

#include <gtest/gtest.h>

namespace zi {
namespace {

/// A unit that the compute stream waited for from 10 to 20 and computed until 25.
UnitTimes waited(Tier tier) {
  UnitTimes unit;
  unit.tier = tier;
  unit.wait = {10, 20};
  unit.compute = {20, 25};
  return unit;
}

PassSplit split_of_unit(const UnitTimes& unit) {
  PassTimes times;
  times.units = {unit};
  return split_of(times);
}

TEST(PassSplit, AWaitIsSharedByWhatTheUnitWasAt) {
  UnitTimes unit = waited(Tier::kNvme);
  unit.read = {2, 13};
  unit.copy = {5, 14.5};
  unit.gather = {15, 20};
  const PassSplit split = split_of_unit(unit);
  EXPECT_DOUBLE_EQ(split.wait_read, 3);
  EXPECT_DOUBLE_EQ(split.wait_copy, 1.5);
  EXPECT_DOUBLE_EQ(split.wait_gather, 5.5);  // with its turn behind earlier gathers
  EXPECT_DOUBLE_EQ(split.waited(), 10);
  EXPECT_DOUBLE_EQ(split.compute, 5);
  EXPECT_DOUBLE_EQ(split.copy, 9.5);
  EXPECT_DOUBLE_EQ(split.gather, 5);
}

TEST(PassSplit, WhatWasReadAndCopiedBeforeTheWaitHasNoShareInIt) {
  UnitTimes unit = waited(Tier::kHost);
  unit.copy = {1, 4};
  unit.gather = {4, 20};
  const PassSplit split = split_of_unit(unit);
  EXPECT_DOUBLE_EQ(split.wait_read + split.wait_copy, 0);
  EXPECT_DOUBLE_EQ(split.wait_gather, 10);
}

TEST(PassSplit, WithOneRankTheRestOfAWaitIsTheCopys) {
  UnitTimes unit = waited(Tier::kHost);
  unit.copy = {12, 19.9};
  EXPECT_DOUBLE_EQ(split_of_unit(unit).wait_copy, 10);
  unit.tier = Tier::kNvme;
  unit.read = {0, 18};
  EXPECT_DOUBLE_EQ(split_of_unit(unit).wait_read, 8);
  EXPECT_DOUBLE_EQ(split_of_unit(unit).wait_copy, 2);
}

TEST(PassSplit, ACopyOnTheDeviceBeforeAGatherCountsAsTheGathers) {
  UnitTimes unit = waited(Tier::kDevice);
  unit.copy = {9, 12};
  unit.gather = {12, 20};
  const PassSplit split = split_of_unit(unit);
  EXPECT_DOUBLE_EQ(split.wait_copy, 0);
  EXPECT_DOUBLE_EQ(split.wait_gather, 10);
  EXPECT_DOUBLE_EQ(split.copy, 0);
}

TEST(PassSplit, EmbeddingHeadAndReplayedGraphsAreCompute) {
  PassTimes times;
  times.embed = {0, 1};
  times.graph = {1, 5};
  times.head = {5, 5.5};
  PassSplit split = split_of(times);
  EXPECT_DOUBLE_EQ(split.compute, 5.5);
  EXPECT_DOUBLE_EQ(split.waited(), 0);
  split += split;
  split *= 0.25;
  EXPECT_DOUBLE_EQ(split.compute, 2.75);
}

}  // namespace
}  // namespace zi
