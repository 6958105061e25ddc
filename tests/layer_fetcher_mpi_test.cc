#include <gtest/gtest.h>

#include "layer_fetcher_harness.h"
#include "mpi_world.h"

namespace zi::test {
namespace {

/// Different on every rank: they must not move in step by luck.
std::uint64_t own_seed(std::uint64_t seed) {
  return seed + 1000 * static_cast<std::uint64_t>(world().rank());
}

TEST(LayerFetcherMpi, GathersEveryByteOfEveryRank) {
  auto communicator = world().make_cpu_communicator();
  for (int units : {1, 2, 5, 7}) {
    for (int slots : {2, 3}) {
      for (std::uint64_t seed = 0; seed < 5; ++seed) {
        FetcherHarness harness(
            {mixed_tiers(units, seed), slots, world().size(), world().rank(), own_seed(seed)},
            communicator.get());
        for (int pass = 0; pass < 3; ++pass) harness.run_pass(harness.compute, pass == 2);
        harness.compute.synchronize();
        EXPECT_EQ(harness.wrong_bytes, 0u)
            << units << " units, " << slots << " slots, seed " << seed;
        EXPECT_EQ(harness.units_computed, 3 * units);
      }
    }
  }
}

TEST(LayerFetcherMpi, GathersOrLeavesWeightsWhereTheyAreFromPassToPass) {
  auto communicator = world().make_cpu_communicator();
  constexpr int kPasses = 12;
  for (int units : {1, 2, 5, 7}) {
    for (int slots : {2, 3}) {
      for (std::uint64_t seed = 0; seed < 8; ++seed) {
        FetcherHarness harness(
            {mixed_tiers(units, seed), slots, world().size(), world().rank(), own_seed(seed), 100},
            communicator.get());
        std::size_t staying = 0;
        for (int pass = 0; pass < kPasses; ++pass) {
          // The same on all ranks; every turn from one kind to the other, and back at once.
          const bool stays = random_bits(seed, 7, static_cast<std::uint64_t>(pass)) % 2 == 0;
          staying += stays ? 1 : 0;
          harness.run_pass(harness.compute, pass + 1 == kPasses, false, stays);
          if (pass % 3 == 0) harness.compute.synchronize();
        }
        harness.compute.synchronize();
        EXPECT_EQ(harness.wrong_bytes, 0u)
            << units << " units, " << slots << " slots, seed " << seed;
        EXPECT_EQ(harness.units_computed, kPasses * units);
        EXPECT_EQ(harness.fetcher->take_stats().staying, staying);
      }
    }
  }
}

TEST(LayerFetcherMpi, UsesReplicatedUnitsInPlaceAmongThoseThatAreGathered) {
  auto communicator = world().make_cpu_communicator();
  constexpr int kPasses = 8;
  for (const int units : {1, 2, 5, 7}) {
    for (std::uint64_t seed = 0; seed < 6; ++seed) {
      HarnessOptions options{mixed_tiers(units, seed), 2,  world().size(), world().rank(),
                             own_seed(seed),           100};
      for (int u = 0; u < units; ++u) {
        const std::uint64_t draw = random_bits(seed, 11, static_cast<std::uint64_t>(u));
        options.replicated.push_back(seed == 0 || draw % 2 == 0);  // seed 0: all, no slot
      }
      FetcherHarness harness(options, communicator.get());
      std::size_t gathered = 0;
      for (int u = 0; u < units; ++u) {
        if (!harness.replicated(u))
          gathered += harness.layouts[static_cast<std::size_t>(u)]->shard_bytes();
      }
      EXPECT_EQ(harness.fetcher->all_resident(false),
                world().size() == 1 ? seed == 0 : gathered == 0);
      for (int pass = 0; pass < kPasses; ++pass) {
        const bool stays =
            pass >= 4 && random_bits(seed, 7, static_cast<std::uint64_t>(pass)) % 2 == 0;
        if (pass == 4) {
          harness.compute.synchronize();
          EXPECT_GE(harness.fetcher->moved()[Link::kGather],
                    4 * gathered * static_cast<std::size_t>(world().size() - 1));
          if (gathered == 0) {
            EXPECT_EQ(harness.fetcher->moved()[Link::kGather], 0u);
          }
        }
        harness.run_pass(harness.compute, pass + 1 == kPasses, false, stays);
      }
      harness.compute.synchronize();
      EXPECT_EQ(harness.wrong_bytes, 0u) << units << " units, seed " << seed;
      EXPECT_EQ(harness.units_computed, kPasses * units);
    }
  }
}

TEST(LayerFetcherMpi, HasASlotForAUnitThatMustBeGatheredBeforeWhatWasFetchedAhead) {
  auto communicator = world().make_cpu_communicator();
  constexpr Tier D = Tier::kDevice, H = Tier::kHost;
  for (int slots : {2, 3}) {
    FetcherHarness harness(
        {{D, D, H, H, H}, slots, world().size(), world().rank(), own_seed(9), 100},
        communicator.get());
    for (int pass = 0; pass < 6; ++pass) {
      harness.run_pass(harness.compute, pass == 5, false, pass % 2 == 0);
    }
    harness.compute.synchronize();
    EXPECT_EQ(harness.wrong_bytes, 0u) << slots << " slots";
    EXPECT_EQ(harness.units_computed, 6 * 5);
  }
}

TEST(LayerFetcherMpi, FetchesOwnShardsAloneWhereWeightsAlwaysStay) {
  auto communicator = world().make_cpu_communicator();
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    FetcherHarness harness(
        {mixed_tiers(5, seed), 2, world().size(), world().rank(), own_seed(seed), 100, true},
        communicator.get());
    std::size_t copied = 0;
    for (int unit = 0; unit < 5; ++unit) {
      const bool rests = harness.options.tiers[static_cast<std::size_t>(unit)] == Tier::kDevice;
      if (!rests) copied += harness.layouts[static_cast<std::size_t>(unit)]->shard_bytes();
    }
    for (int pass = 0; pass < 4; ++pass) harness.run_pass(harness.compute, pass == 3, false, true);
    harness.compute.synchronize();
    EXPECT_EQ(harness.wrong_bytes, 0u) << "seed " << seed;
    EXPECT_EQ(harness.units_computed, 4 * 5);
    const FetchStats stats = harness.fetcher->take_stats();
    EXPECT_EQ(stats.bytes[Link::kCopy], 4 * copied);
    EXPECT_EQ(stats.bytes[Link::kGather], 0u);
    EXPECT_THROW(harness.run_pass(harness.compute, true), Error) << "there is no room";
  }
}

TEST(LayerFetcherMpi, AnIdleRankTakesPartInEveryGather) {
  auto communicator = world().make_cpu_communicator();
  FetcherHarness harness({mixed_tiers(5, 11), 2, world().size(), world().rank(), own_seed(3)},
                         communicator.get());
  const int passes = 2 * world().size();
  int active = 0;
  for (int pass = 0; pass < passes; ++pass) {
    const bool idle = pass % world().size() == world().rank();  // each rank in turn
    active += idle ? 0 : 1;
    harness.run_pass(harness.compute, pass == passes - 1, idle);
  }
  harness.compute.synchronize();
  EXPECT_EQ(harness.wrong_bytes, 0u);
  EXPECT_EQ(harness.units_computed, 5 * active);
}

TEST(LayerFetcherMpi, OtherCollectivesMayFollowOnTheStreamOfTheGathers) {
  auto communicator = world().make_cpu_communicator();
  FetcherHarness harness({mixed_tiers(4, 12), 2, world().size(), world().rank(), own_seed(4)},
                         communicator.get());
  const auto ranks = static_cast<std::size_t>(world().size());
  for (int pass = 0; pass < 4; ++pass) {
    harness.run_pass(harness.compute, pass == 3);
    // The way of the LM head: states gathered after the pass's compute, control over the World
    // meanwhile.
    std::vector<int> states(ranks, -1);
    const int own = 100 * pass + world().rank();
    auto computed = harness.device->make_event();
    harness.compute.record(*computed);
    harness.gathers->wait(*computed);
    communicator->all_gather(&own, states.data(), sizeof(own), *harness.gathers);
    const std::vector<int> control = world().all_gather(pass);
    harness.gathers->synchronize();
    for (std::size_t r = 0; r < ranks; ++r) {
      EXPECT_EQ(states[r], 100 * pass + static_cast<int>(r));
      EXPECT_EQ(control[r], pass);
    }
  }
  EXPECT_EQ(harness.wrong_bytes, 0u);
  EXPECT_EQ(harness.units_computed, 16);
}

TEST(LayerFetcherMpi, EndsTogetherWithTheNextPassInFlight) {
  auto communicator = world().make_cpu_communicator();
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    FetcherHarness harness(
        {mixed_tiers(5, 3 + seed), 2, world().size(), world().rank(), own_seed(seed)},
        communicator.get());
    harness.run_pass(harness.compute, false);
    harness.fetcher.reset();
    EXPECT_EQ(harness.wrong_bytes, 0u);
  }
}

TEST(LayerFetcherMpi, UnwindsFromAFailureInMidPassOnceWhatWasEnqueuedIsGathered) {
  // Every rank fails at its third unit, at a time of its own: the gathers of the first two are
  // still in flight.
  auto communicator = world().make_cpu_communicator();
  FetcherHarness harness(
      {std::vector<Tier>(4, Tier::kNvme), 2, world().size(), world().rank(), own_seed(5)},
      communicator.get());
  harness.store_in(Tier::kNvme).fail_at = 3;
  random_delay(own_seed(6), 1, 20000);
  EXPECT_THROW(harness.run_pass(harness.compute, false), IoError);
  harness.fetcher.reset();
  EXPECT_EQ(harness.wrong_bytes, 0u);
  EXPECT_EQ(harness.units_computed, 2);
  world().barrier();
}

TEST(LayerFetcherMpi, GathersWholeShardsAfterPassesInWhichTheHostHadAShare) {
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    const auto communicator = world().make_cpu_communicator();
    FetcherHarness harness({.tiers = mixed_tiers(6, seed),
                            .slots = 3,
                            .world = world().size(),
                            .rank = world().rank(),
                            .seed = seed},
                           communicator.get());
    for (std::uint64_t pass = 0; pass < 10; ++pass) {
      const bool stays = random_bits(seed, 8, pass) % 3 != 0;
      // The share is a rank's own affair.
      const double share = world().rank() % 2 == 0 ? 0.5 : pass % 2 == 0 ? 1 : 0.25;
      harness.run_pass(harness.compute, pass == 9, false, stays, share);
    }
    harness.compute.synchronize();
    EXPECT_EQ(harness.wrong_bytes, 0u) << "seed " << seed;
  }
}

}  // namespace
}  // namespace zi::test
