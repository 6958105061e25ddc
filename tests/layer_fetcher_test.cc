#include "offload/layer_fetcher.h"

#include <gmock/gmock.h>

#include <condition_variable>
#include <future>
#include <mutex>

#include "layer_fetcher_harness.h"

namespace zi::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr Tier D = Tier::kDevice;
constexpr Tier H = Tier::kHost;
constexpr Tier N = Tier::kNvme;

/// Plays the other ranks: gathers arrive in unit order over and over, and what this rank sends is
/// checked when the gather runs.
class FakeCommunicator final : public Communicator {
 public:
  FakeCommunicator(int world, int rank, int units) : world_(world), rank_(rank), units_(units) {}

  void all_gather(const void* send, void* recv, std::size_t bytes, Stream& stream) override {
    const int unit = gathers_enqueued++ % units_;
    EXPECT_EQ(bytes, FetcherHarness::pages_of(unit) * kPageBytes) << "not in unit order";
    dynamic_cast<CpuStream&>(stream).enqueue([this, send, recv, bytes, unit] {
      random_delay(17, static_cast<std::uint64_t>(++counter_), 200);
      auto* blocks = static_cast<std::byte*>(recv);
      auto* own = blocks + static_cast<std::size_t>(rank_) * bytes;
      if (send != own) {
        ++out_of_place;
        std::memcpy(own, send, bytes);
      }
      for (std::size_t i = 0; i < bytes; ++i) wrong_bytes += own[i] != shard_byte(unit, rank_, i);
      for (int r = 0; r < world_; ++r) {
        if (r == rank_) continue;
        const auto shard = make_shard(unit, r, bytes);
        std::memcpy(blocks + static_cast<std::size_t>(r) * bytes, shard.data(), bytes);
      }
    });
  }
  void all_to_all(const void*, void*, std::size_t, Stream&) override { FAIL() << "not used"; }

  int gathers_enqueued = 0;
  std::atomic<std::size_t> wrong_bytes{0};
  std::atomic<int> out_of_place{0};

 private:
  int world_;
  int rank_;
  int units_;
  int counter_ = 0;
};

TEST(LayerFetcher, BringsEveryByteBeforeItsComputeAndKeepsItUntilThen) {
  for (int units = 1; units <= 7; ++units) {
    for (int slots : {2, 3}) {
      for (std::uint64_t seed = 0; seed < 6; ++seed) {
        FetcherHarness harness({mixed_tiers(units, seed), slots, 1, 0, seed}, nullptr);
        for (int pass = 0; pass < 4; ++pass) harness.run_pass(harness.compute, pass == 3);
        harness.compute.synchronize();
        ASSERT_EQ(harness.wrong_bytes, 0u)
            << units << " units, " << slots << " slots, seed " << seed;
        ASSERT_EQ(harness.units_computed, 4 * units);
      }
    }
  }
}

TEST(LayerFetcher, GathersEveryRanksShardInUnitOrder) {
  for (int units = 1; units <= 7; ++units) {
    for (int slots : {2, 3}) {
      for (std::uint64_t seed = 0; seed < 5; ++seed) {
        const int rank = static_cast<int>(seed % 3);
        const auto tiers = mixed_tiers(units, seed);
        FakeCommunicator communicator(3, rank, units);
        FetcherHarness harness({tiers, slots, 3, rank, seed}, &communicator);
        for (int pass = 0; pass < 3; ++pass) {
          harness.run_pass(harness.compute, pass == 2, /*idle=*/pass == 1);
        }
        harness.compute.synchronize();
        ASSERT_EQ(harness.wrong_bytes, 0u)
            << units << " units, " << slots << " slots, seed " << seed;
        ASSERT_EQ(communicator.wrong_bytes, 0u) << "sent before it was copied";
        ASSERT_EQ(communicator.gathers_enqueued, 3 * units);
        ASSERT_EQ(communicator.out_of_place, 0) << "copy engines would move the own shard, too";
      }
    }
  }
}

TEST(LayerFetcher, GoesOnAfterALastPass) {
  FetcherHarness harness({{H, N, H}}, nullptr);
  for (bool last : {false, true, true, false, true}) harness.run_pass(harness.compute, last);
  harness.compute.synchronize();
  EXPECT_EQ(harness.wrong_bytes, 0u);
  EXPECT_EQ(harness.units_computed, 15);
}

TEST(LayerFetcher, FetchesIntoTheNextPassUnlessItIsTheLast) {
  FetcherHarness harness({{H, H, H, H, H}, 3}, nullptr);
  harness.run_pass(harness.compute, false);
  EXPECT_EQ(harness.store_in(H).finished, 5 + 3);
  harness.run_pass(harness.compute, true);
  EXPECT_EQ(harness.store_in(H).finished, 10);
}

TEST(LayerFetcher, InAWorldOfManyFetchesTwoUnitsOfTheNextPassAndTheOthersWhenItIsRun) {
  FakeCommunicator communicator(3, 0, 5);
  FetcherHarness harness({{H, H, H, H, H}, 3, 3, 0}, &communicator);
  harness.run_pass(harness.compute, false);
  EXPECT_EQ(communicator.gathers_enqueued, 5 + 2);
  EXPECT_EQ(harness.store_in(H).finished, 5 + 2);
  harness.log.clear();
  harness.run_pass(harness.compute, false);
  EXPECT_EQ(communicator.gathers_enqueued, 10 + 2);
  const auto finish = std::ranges::find(harness.log, "finish 2");
  EXPECT_LT(finish, std::ranges::find(harness.log, "body 0")) << "its slot was free";
  harness.compute.synchronize();
  EXPECT_EQ(harness.wrong_bytes, 0u);
}

TEST(LayerFetcher, DoesNotWaitForTheDevice) {
  FetcherHarness harness({{H, D, H, H, D, H, H}}, nullptr);
  std::promise<void> released;
  harness.compute.enqueue([&] { released.get_future().wait(); });
  harness.run_pass(harness.compute, false);  // would never return
  EXPECT_EQ(harness.units_computed, 0);
  released.set_value();
  harness.compute.synchronize();
  EXPECT_EQ(harness.units_computed, 7);
  EXPECT_EQ(harness.wrong_bytes, 0u);
}

TEST(LayerFetcher, WaitsForStorageOnlyBehindEverythingThatCanRun) {
  FetcherHarness harness({{D, N, D, D, N}}, nullptr);
  harness.run_pass(harness.compute, true);
  EXPECT_THAT(harness.log, ElementsAre("start 1", "start 4", "body 0", "finish 1", "body 1",
                                       "body 2", "body 3", "finish 4", "body 4"));
}

TEST(LayerFetcher, StartsReadsOfTheNextPassAsSoonAsTheUnitWasRead) {
  FetcherHarness harness({{N, N}}, nullptr);
  harness.run_pass(harness.compute, false);
  EXPECT_THAT(harness.log, ElementsAre("start 0", "start 1", "finish 0", "start 0", "body 0",
                                       "finish 1", "start 1", "body 1"));
}

TEST(LayerFetcher, UsesDeviceUnitsOfAWorldOfOneInPlaceAndWithoutSlots) {
  FetcherHarness harness({{D, D}}, nullptr);
  harness.fetcher->run_pass(
      [&](int unit, const UnitWeights& weights) {
        EXPECT_EQ(weights.data, harness.store_in(D).resident(unit));
      },
      harness.compute, {.last = true});
  const FetchStats stats = harness.fetcher->take_stats();
  EXPECT_EQ(stats.bytes.sum(), 0u);
  EXPECT_THAT(harness.log, ElementsAre());
}

TEST(LayerFetcher, GivesARecordedPassTheWeightsThatABodyGetsAndRefusesWhatTravels) {
  FetcherHarness harness({.tiers = {D, H, D}}, nullptr);
  std::vector<const std::byte*> given;
  harness.fetcher->run_pass([&](int, const UnitWeights& weights) { given.push_back(weights.data); },
                            harness.compute, {.last = true});
  for (const int unit : {0, 2}) {
    const UnitWeights weights = harness.fetcher->resident_weights(unit, false);
    EXPECT_EQ(weights.layout, harness.layouts[static_cast<std::size_t>(unit)].get());
    EXPECT_EQ(weights.data, given[static_cast<std::size_t>(unit)]);
  }
  EXPECT_THROW(harness.fetcher->resident_weights(1, false), Error);
}

TEST(LayerFetcher, CountsBytesByTheirWayAndTimesThem) {
  FakeCommunicator communicator(3, 1, 3);
  FetcherHarness harness({{D, H, N}, 2, 3, 1}, &communicator);  // 1, 2 and 3 pages
  for (bool last : {false, true}) {
    harness.run_pass(harness.compute, last);
    harness.compute.synchronize();
  }
  const FetchStats stats = harness.fetcher->take_stats();
  EXPECT_EQ(stats.passes, 2u);
  EXPECT_EQ(stats.bytes[Link::kCopy], 2 * 5 * kPageBytes);
  EXPECT_EQ(stats.bytes[Link::kRead], 2 * 3 * kPageBytes);
  EXPECT_EQ(stats.bytes[Link::kGather], 2 * 6 * 2 * kPageBytes);
  EXPECT_EQ(stats.bytes.sum(), 2 * 20 * kPageBytes);
  EXPECT_GT(stats.gather_seconds, 0);
  const FetchStats after = harness.fetcher->take_stats();
  EXPECT_EQ(after.passes + after.bytes.sum(), 0u);
  EXPECT_EQ(after.gather_seconds, 0);
}

TEST(LayerFetcher, LetsAFailedReadOutAndEndsCleanly) {
  for (Tier tier : {H, N}) {
    FetcherHarness harness({{tier, tier, tier, tier}}, nullptr);
    harness.store_in(tier).fail_at = 7;  // in the second pass, or on the way to it
    bool failed = false;
    for (int pass = 0; pass < 2 && !failed; ++pass) {
      try {
        harness.run_pass(harness.compute, false);
      } catch (const IoError& e) {
        failed = true;
        EXPECT_THAT(e.what(), HasSubstr("offset 8192"));
      }
    }
    EXPECT_TRUE(failed);
    EXPECT_THROW(harness.run_pass(harness.compute, true), Error);
    harness.compute.synchronize();
    EXPECT_EQ(harness.wrong_bytes, 0u);
  }
}

TEST(LayerFetcher, AFailedCopyComesOutWhereComputeWaitedForItAndHangsNowhere) {
  FetcherHarness harness({{H, H, H}}, nullptr);
  harness.store_in(H).fail_in_stream_at = 2;
  harness.run_pass(harness.compute, false);
  EXPECT_THROW(harness.compute.synchronize(), IoError);  // it waited for what never came
  EXPECT_EQ(harness.units_computed, 1);
}

TEST(LayerFetcher, WaitsAtItsEndForComputeThatABodyEnqueuedBeforeItThrew) {
  auto harness = std::make_unique<FetcherHarness>(HarnessOptions{{H, H, H}}, nullptr);
  std::atomic<int> sum{0};
  const auto body = [&](int unit, const UnitWeights& weights) {
    harness->compute.enqueue([&sum, data = weights.data] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      sum += std::to_integer<int>(data[0]) + 1;
    });
    if (unit == 1) throw ConfigError("body failed");
  };
  EXPECT_THROW(harness->fetcher->run_pass(body, harness->compute, {}), ConfigError);
  harness->fetcher.reset();  // the slots go: nothing may read them any more
  EXPECT_EQ(sum, std::to_integer<int>(shard_byte(0, 0, 0)) +
                     std::to_integer<int>(shard_byte(1, 0, 0)) + 2);
}

TEST(LayerFetcher, EndsWithAPassInFlight) {
  for (int pass = 0; pass < 10; ++pass) {
    FakeCommunicator communicator(2, 0, 5);
    FetcherHarness harness({{H, D, N, H, H}, 2, 2, 0, static_cast<std::uint64_t>(pass)},
                           &communicator);
    harness.run_pass(harness.compute, false);
    harness.fetcher.reset();
    EXPECT_EQ(harness.wrong_bytes, 0u);
    EXPECT_EQ(harness.units_computed, 5);
  }
}

TEST(LayerFetcher, CopiesWhatWasReadBesideEarlierCopiesAndNotBehindThem) {
  // The copy of unit 1 ends when that of unit 2, which comes from storage, has begun.
  FetcherHarness harness({.tiers = {H, H, N, H}, .slots = 2}, nullptr);
  std::mutex mutex;
  std::condition_variable changed;
  bool read_copied = false, in_time = false;
  harness.store_in(H).on_copy = [&](int unit) {
    if (unit != 1) return;
    std::unique_lock lock(mutex);
    in_time = changed.wait_for(lock, std::chrono::seconds(20), [&] { return read_copied; });
  };
  harness.store_in(N).on_copy = [&](int) {
    const std::lock_guard lock(mutex);
    read_copied = true;
    changed.notify_all();
  };
  harness.run_pass(harness.compute, true);
  harness.compute.synchronize();
  EXPECT_TRUE(in_time);
  EXPECT_EQ(harness.wrong_bytes, 0u);
}

TEST(LayerFetcher, PlansSlotsOfTheLargestTravellingUnit) {
  const auto layout = [](std::int64_t rows, int world) {
    return PartitionLayout({"unit", {{"w", {rows, 2048}}}, {}}, DType::kBFloat16, world);
  };
  const PartitionLayout small = layout(2, 1);
  const PartitionLayout large = layout(10, 1);
  EXPECT_EQ(LayerFetcher::slots_bytes({&small, &large}, {H, H}, 2), 2 * 10 * kPageBytes);
  EXPECT_EQ(LayerFetcher::slots_bytes({&small, &large}, {N, D}, 3), 3 * 2 * kPageBytes);
  EXPECT_EQ(LayerFetcher::slots_bytes({&small, &large}, {D, D}, 2), 0u);
  EXPECT_EQ(LayerFetcher::slots_bytes({&small, &large, &small}, {H, N, D}, 2), 3 * 10 * kPageBytes)
      << "one for those on NVMe alone";
  EXPECT_EQ(LayerFetcher::slots_bytes({&small, &large}, {N, N}, 2), 2 * 10 * kPageBytes);
  const PartitionLayout shared = layout(10, 4);  // 3 rows a rank
  EXPECT_EQ(LayerFetcher::slots_bytes({&shared, &shared}, {D, N}, 2), 3 * 12 * kPageBytes);
  EXPECT_EQ(LayerFetcher::slots_bytes({&shared, &shared}, {D, N}, 2, true), 2 * 3 * kPageBytes);
  EXPECT_EQ(LayerFetcher::slots_bytes({&shared}, {D}, 2), 2 * 12 * kPageBytes);
  EXPECT_EQ(LayerFetcher::slots_bytes({&shared, &shared}, {D, H}, 2, true), 2 * 3 * kPageBytes);
  EXPECT_EQ(LayerFetcher::slots_bytes({&shared}, {D}, 2, true), 0u);
  EXPECT_THROW(LayerFetcher::slots_bytes({&small}, {H}, 1), ConfigError);
}

TEST(LayerFetcher, RefusesArgumentsThatDoNotBelongTogether) {
  auto device = make_cpu_device();
  auto gathers = device->make_stream("gathers");
  HostLog log;
  FakeStore store(H, 1, 0, &log);
  FakeCommunicator communicator(2, 0, 1);
  const UnitSpec unit{"unit", {{"w", {2, 2048}}}, {}};
  const PartitionLayout one(unit, DType::kBFloat16, 1);
  const PartitionLayout two(unit, DType::kBFloat16, 2);
  const auto make = [&](Communicator* comm, int rank, std::vector<const PartitionLayout*> layouts,
                        std::vector<ShardStore*> stores, int slots) {
    LayerFetcher(*device, comm, rank, std::move(layouts), std::move(stores), slots, *gathers);
  };
  EXPECT_NO_THROW(make(nullptr, 0, {&one}, {&store}, 2));
  EXPECT_THROW(make(nullptr, 0, {&one}, {}, 2), Error);
  EXPECT_THROW(make(nullptr, 0, {&one}, {nullptr}, 2), Error);
  EXPECT_THROW(make(nullptr, 0, {&one}, {&store}, 1), ConfigError);
  EXPECT_THROW(make(nullptr, 1, {&one}, {&store}, 2), Error);
  EXPECT_THROW(make(nullptr, 0, {&two}, {&store}, 2), Error);
  EXPECT_THROW(make(&communicator, 0, {&two, &one}, {&store, &store}, 2), Error);
}

TEST(LayerFetcher, KeepsTheTimesOfTheLastTwoPassesUnitByUnit) {
  for (const int world : {1, 3}) {
    FakeCommunicator communicator(world, 0, 5);
    FetcherHarness harness({{H, D, N, H, D}, 2, world, 0, 9, 200},
                           world > 1 ? &communicator : nullptr);
    const DeviceClock clock(*harness.device, harness.compute);
    const double begin = host_seconds();
    harness.run_pass(harness.compute, false);
    harness.fetcher->time_units(true);
    for (std::uint64_t pass = 0; pass < 6; ++pass) {
      harness.run_pass(harness.compute, pass == 5);
      // As the pass runner does: a pass's times are asked for while the next one runs.
      if (pass == 0) {
        harness.compute.synchronize();
        continue;
      }
      const auto units = harness.fetcher->unit_times(pass - 1, clock);
      harness.compute.synchronize();
      ASSERT_EQ(units.size(), 5u);
      double before = begin;
      for (int u = 0; u < 5; ++u) {
        const UnitTimes& unit = units[static_cast<std::size_t>(u)];
        EXPECT_EQ(unit.unit, u);
        EXPECT_GT(unit.compute.seconds(), 0);
        EXPECT_GE(unit.compute.begin, before) << "units compute one after the other";
        before = unit.compute.end;
        if (harness.in_place(u)) {
          EXPECT_FALSE(unit.moved[Link::kCopy].happened());
          continue;
        }
        EXPECT_TRUE(unit.moved[Link::kCopy].happened());
        EXPECT_EQ(unit.moved[Link::kGather].happened(), world > 1);
        const Interval& last = world > 1 ? unit.moved[Link::kGather] : unit.moved[Link::kCopy];
        EXPECT_LE(last.end, unit.compute.begin);
        EXPECT_LE(unit.wait.end, unit.compute.begin);
        EXPECT_GE(last.begin, begin);
      }
    }
    EXPECT_THROW(harness.fetcher->unit_times(3, clock), Error);
    EXPECT_THROW(harness.fetcher->unit_times(6, clock), Error);
    EXPECT_NO_THROW(harness.fetcher->unit_times(4, clock));
    harness.fetcher->time_units(false);
    EXPECT_THROW(harness.fetcher->unit_times(5, clock), Error);
  }
}

TEST(LayerFetcher, LeavesTheHostsShareWhereItRests) {
  FetcherHarness harness({.tiers = {H, H, H, H}, .slots = 2}, nullptr);
  std::size_t all = 0;
  for (const auto& layout : harness.layouts) all += layout->shard_bytes();
  for (int pass = 0; pass < 4; ++pass)
    harness.run_pass(harness.compute, pass == 3, false, false, 0.5);
  harness.compute.synchronize();
  EXPECT_EQ(harness.wrong_bytes, 0u);
  const FetchStats stats = harness.fetcher->take_stats();
  EXPECT_GT(stats.host_bytes, 0u);
  EXPECT_EQ(stats.host_bytes, harness.bytes_on_host);
  EXPECT_EQ(stats.bytes[Link::kCopy] + stats.host_bytes, 4 * all);
}

TEST(LayerFetcher, GivesEveryUnitItsRowsWhateverTheShareOfTheNextPass) {
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    for (int slots : {2, 3, 5}) {
      FetcherHarness harness({.tiers = mixed_tiers(7, seed), .slots = slots, .seed = seed},
                             nullptr);
      constexpr double kShares[] = {0, 0.25, 0.5, 1};
      for (std::uint64_t pass = 0; pass < 12; ++pass) {
        const double share = kShares[random_bits(seed, 7, pass) % 4];
        harness.run_pass(harness.compute, pass == 11, false, false, share);
      }
      harness.compute.synchronize();
      EXPECT_EQ(harness.wrong_bytes, 0u) << "seed " << seed << ", " << slots << " slots";
      EXPECT_EQ(harness.units_computed, 12 * 7);
    }
  }
}

TEST(LayerFetcher, BringsTheRowsThatAPassWithASmallerShareStillNeeds) {
  FetcherHarness harness({.tiers = {H, H, H}, .slots = 2}, nullptr);
  std::size_t all = 0;
  for (const auto& layout : harness.layouts) all += layout->shard_bytes();
  harness.run_pass(harness.compute, false, false, false, 1);
  EXPECT_EQ(harness.fetcher->take_stats().bytes[Link::kCopy], 0u);
  harness.run_pass(harness.compute, true, false, false, 0);
  harness.compute.synchronize();
  EXPECT_EQ(harness.wrong_bytes, 0u);
  EXPECT_EQ(harness.fetcher->take_stats().bytes[Link::kCopy], all) << "each row once";
}

}  // namespace
}  // namespace zi::test
