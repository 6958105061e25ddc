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
  unit.moved[Link::kRead] = {2, 13};
  unit.moved[Link::kCopy] = {5, 14.5};
  unit.moved[Link::kGather] = {15, 20};
  const PassSplit split = split_of_unit(unit);
  EXPECT_DOUBLE_EQ(split.waited[Link::kRead], 3);
  EXPECT_DOUBLE_EQ(split.waited[Link::kCopy], 1.5);
  EXPECT_DOUBLE_EQ(split.waited[Link::kGather], 5.5);  // with its turn after earlier gathers
  EXPECT_DOUBLE_EQ(split.waited.sum(), 10);
  EXPECT_DOUBLE_EQ(split.compute, 5);
  EXPECT_DOUBLE_EQ(split.busy[Link::kCopy], 9.5);
  EXPECT_DOUBLE_EQ(split.busy[Link::kGather], 5);
}

TEST(PassSplit, WhatWasReadAndCopiedBeforeTheWaitHasNoShareInIt) {
  UnitTimes unit = waited(Tier::kHost);
  unit.moved[Link::kCopy] = {1, 4};
  unit.moved[Link::kGather] = {4, 20};
  const PassSplit split = split_of_unit(unit);
  EXPECT_DOUBLE_EQ(split.waited[Link::kRead] + split.waited[Link::kCopy], 0);
  EXPECT_DOUBLE_EQ(split.waited[Link::kGather], 10);
}

TEST(PassSplit, WithOneRankTheRestOfAWaitIsTheCopys) {
  UnitTimes unit = waited(Tier::kHost);
  unit.moved[Link::kCopy] = {12, 19.9};
  EXPECT_DOUBLE_EQ(split_of_unit(unit).waited[Link::kCopy], 10);
  unit.tier = Tier::kNvme;
  unit.moved[Link::kRead] = {0, 18};
  EXPECT_DOUBLE_EQ(split_of_unit(unit).waited[Link::kRead], 8);
  EXPECT_DOUBLE_EQ(split_of_unit(unit).waited[Link::kCopy], 2);
}

TEST(PassSplit, ACopyOnTheDeviceBeforeAGatherCountsAsTheGathers) {
  UnitTimes unit = waited(Tier::kDevice);
  unit.moved[Link::kCopy] = {9, 12};
  unit.moved[Link::kGather] = {12, 20};
  const PassSplit split = split_of_unit(unit);
  EXPECT_DOUBLE_EQ(split.waited[Link::kCopy], 0);
  EXPECT_DOUBLE_EQ(split.waited[Link::kGather], 10);
  EXPECT_DOUBLE_EQ(split.busy[Link::kCopy], 0);
}

TEST(PassSplit, EmbeddingHeadAndReplayedGraphsAreCompute) {
  PassTimes times;
  times.embed = {0, 1};
  times.graph = {1, 5};
  times.head = {5, 5.5};
  PassSplit split = split_of(times);
  EXPECT_DOUBLE_EQ(split.compute, 5.5);
  EXPECT_DOUBLE_EQ(split.waited.sum(), 0);
  split += split;
  split *= 0.25;
  EXPECT_DOUBLE_EQ(split.compute, 2.75);
}

}  // namespace
}  // namespace zi
