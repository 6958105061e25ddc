#include "offload/trip_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "zero_infer/error.h"

namespace zi {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr Tier D = Tier::kDevice, H = Tier::kHost, N = Tier::kNvme;

/// Completes what may be fetched now; returns the units.
std::vector<int> fetch_all(TripQueue& queue) {
  std::vector<int> units;
  while (Trip* const trip = queue.next()) {
    if (trip->slot < 0) queue.take_slot(*trip);
    trip->gathered = trip->gathers;
    trip->share_left = trip->host_share;
    units.push_back(trip->unit);
  }
  return units;
}

/// Runs the units of a pass; returns those that travelled.
std::vector<int> run_pass(TripQueue& queue, int units) {
  std::vector<int> travelled;
  for (int unit = 0; unit < units; ++unit) {
    if (!queue.is_turn_of(unit)) continue;
    Trip& trip = queue.front();
    if (trip.slot < 0) queue.take_slot(trip);
    trip.gathered = trip.gathers;
    trip.share_left = trip.host_share;
    travelled.push_back(unit);
    queue.consume();
    fetch_all(queue);
  }
  return travelled;
}

TEST(TripQueue, TakesAllUnitsOfAPassThatGathersAndElseThoseThatDoNotRestOnTheDevice) {
  TripQueue queue({D, H, D, N}, 2, true);
  queue.plan_pass(true, true);
  EXPECT_THAT(run_pass(queue, 4), ElementsAre(0, 1, 2, 3));
  queue.plan_pass(false, true);
  EXPECT_THAT(run_pass(queue, 4), ElementsAre(1, 3));
  EXPECT_EQ(queue.next(), nullptr);
}

TEST(TripQueue, LeavesReplicatedUnitsWhereTheyRestInPassesOfEitherKind) {
  TripQueue queue({D, D, H, D}, 2, true, false, {true, false, false, true});
  queue.plan_pass(true, false);
  EXPECT_THAT(run_pass(queue, 4), ElementsAre(1, 2));
  queue.plan_pass(false, false);  // what was gathered on a wrong guess has its turn
  EXPECT_THAT(run_pass(queue, 4), ElementsAre(1, 2));
  queue.plan_pass(false, false);
  EXPECT_THAT(run_pass(queue, 4), ElementsAre(2));
  queue.plan_pass(true, true);
  EXPECT_THAT(run_pass(queue, 4), ElementsAre(1, 2));
  EXPECT_EQ(queue.next(), nullptr);
}

TEST(TripQueue, NeedsNoSlotWhereAllUnitsAreReplicated) {
  TripQueue queue({D, D}, 0, true, false, {true, true});
  for (const bool gathers : {true, false, true}) {
    queue.plan_pass(gathers, false);
    EXPECT_EQ(queue.trips_of_a_pass(), 0u);
    EXPECT_THAT(run_pass(queue, 2), ElementsAre());
  }
}

TEST(TripQueue, GathersInItsSlotWhatWasFetchedForAPassWithoutGathers) {
  TripQueue queue({D, H, H, H}, 2, true);
  queue.plan_pass(false, false);
  EXPECT_THAT(run_pass(queue, 4), ElementsAre(1, 2, 3));
  // Ahead: one own shard, so that a slot is left for what comes before it after all.
  queue.plan_pass(true, true);
  EXPECT_TRUE(queue.is_turn_of(0));
  EXPECT_THAT(fetch_all(queue), ElementsAre(0, 1));
  EXPECT_TRUE(queue.front().gathered);
  EXPECT_NE(queue.front().slot, -1);
  EXPECT_THAT(run_pass(queue, 4), ElementsAre(0, 1, 2, 3));
}

TEST(TripQueue, UsesAsItIsWhatWasGatheredForAPassThatGathersNothing) {
  TripQueue queue({D, H, D, H}, 3, true);
  queue.plan_pass(true, false);
  run_pass(queue, 4);
  queue.plan_pass(false, true);
  // Units 0 and 1 had been gathered ahead, unit 2 had not.
  EXPECT_TRUE(queue.front().complete());
  EXPECT_TRUE(queue.front().gathered);
  EXPECT_THAT(run_pass(queue, 4), ElementsAre(0, 1, 3));
}

TEST(TripQueue, FetchesAsFarAsSlotsGoWhereNothingIsEverGathered) {
  TripQueue queue({H, H, H, H}, 3, false);
  queue.plan_pass(false, false);
  EXPECT_THAT(run_pass(queue, 4), ElementsAre(0, 1, 2, 3));
  queue.plan_pass(false, true);
  EXPECT_THAT(fetch_all(queue), IsEmpty()) << "all slots hold units of this pass";
  Trip trip;
  EXPECT_THROW(queue.take_slot(trip), Error);
}

TEST(TripQueue, KeepsASlotForUnitsOnNvme) {
  TripQueue queue({H, N, H, N, N, H}, 2, false, true);
  queue.plan_pass(false, true);
  EXPECT_THAT(fetch_all(queue), ElementsAre(0, 1, 2));
  EXPECT_EQ(queue.front().slot, 0);
  queue.consume();
  EXPECT_EQ(queue.front().slot, 2) << "its own";
  EXPECT_THAT(fetch_all(queue), ElementsAre(3)) << "one more of them takes any slot";
  queue.consume();
  EXPECT_THAT(fetch_all(queue), ElementsAre(4));
  queue.consume();
  EXPECT_THAT(fetch_all(queue), ElementsAre(5));
  EXPECT_THAT(run_pass(queue, 6), ElementsAre(3, 4, 5));
}

TEST(TripQueue, StartsEachReadOnceAndNoneOfWhatRestsOnTheDevice) {
  TripQueue queue({D, N, H}, 2, true);
  const auto reads = [&] {
    std::vector<int> units;
    while (Trip* const trip = queue.next_read()) {
      trip->read_started = true;
      units.push_back(trip->unit);
    }
    return units;
  };
  queue.plan_pass(false, false);
  EXPECT_THAT(reads(), ElementsAre(1, 2));
  run_pass(queue, 3);
  EXPECT_THAT(reads(), ElementsAre(1, 2)) << "of the next pass";
  queue.plan_pass(true, true);
  EXPECT_THAT(reads(), IsEmpty()) << "also when this turns out to gather";
}

TEST(TripQueue, LeavesTheHostItsShareOfWhatRestsThereInPassesThatDoNotGather) {
  TripQueue queue({H, D, N, H}, 2, true);
  queue.plan_pass(false, true, 0.5);
  const auto shares = [&] {
    std::vector<double> wanted;
    for (int unit : {0, 1, 2, 3}) {
      if (!queue.is_turn_of(unit)) continue;
      if (queue.front().slot < 0) queue.take_slot(queue.front());
      EXPECT_TRUE(!queue.front().copied() || queue.front().host_share == 1);
      wanted.push_back(queue.front().host_share);
      queue.consume();
    }
    return wanted;
  };
  EXPECT_THAT(shares(), ElementsAre(0.5, 0, 0.5)) << "what is on storage travels whole";
  queue.plan_pass(true, true, 0.5);
  EXPECT_THAT(shares(), ElementsAre(0, 0, 0, 0)) << "others need all rows";
}

TEST(TripQueue, CompletesWhatWasFetchedForALargerShareAndKeepsWhatWasForASmallerOne) {
  TripQueue queue({H, H, H}, 2, false);
  queue.plan_pass(false, false, 0.5);
  EXPECT_THAT(run_pass(queue, 3), ElementsAre(0, 1, 2));
  queue.plan_pass(false, false, 0.25);  // two are there, each with half of its rows
  EXPECT_THAT(fetch_all(queue), ElementsAre(0, 1));
  EXPECT_THAT(run_pass(queue, 3), ElementsAre(0, 1, 2));
  queue.plan_pass(false, true, 0.75);
  EXPECT_THAT(fetch_all(queue), IsEmpty());
  EXPECT_EQ(queue.front().share_left, 0.25);
  EXPECT_THAT(run_pass(queue, 3), ElementsAre(0, 1, 2));
}

}  // namespace
}  // namespace zi
