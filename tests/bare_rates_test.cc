#include "measure/bare_rates.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <set>
#include <thread>
#include <vector>

#include "forwarding_device.h"
#include "mpi_world.h"
#include "zero_infer/backend.h"
#include "zero_infer/bytes.h"
#include "zero_infer/cpu_stream.h"

namespace zi::test {
namespace {

TEST(BareRate, IsOfTheBestRepeatAndNotOfTheWarmUp) {
  const std::vector<double> seconds = {0.001, 4, 2, 5, 2.5};  // the first warms up
  std::size_t calls = 0;
  const BareRate rate =
      bare_rate(world(), 100, {.least = 4, .most = 4}, [&] { return seconds.at(calls++); });
  EXPECT_EQ(calls, 5u);
  EXPECT_DOUBLE_EQ(rate.own, 50);
  EXPECT_DOUBLE_EQ(rate.slowest, 50);
}

TEST(BareRate, TellsTheSlowestRankInTheBestRepeat) {
  // Rank 0 is slow in even repeats, the others in odd ones, and less.
  int repeat = -1;
  const BareRate rate = bare_rate(world(), 12, {.least = 4, .most = 4}, [&] {
    const bool slow = ++repeat % 2 == (world().rank() == 0 ? 0 : 1);
    return slow ? (world().rank() == 0 ? 4.0 : 3.0) : 1.0;
  });
  EXPECT_DOUBLE_EQ(rate.own, 12);
  EXPECT_DOUBLE_EQ(rate.slowest, world().size() == 1 ? 12 : 4);
}

TEST(BareRate, LeavesOutTheRanksThatHaveNoPart) {
  const int worker = world().size() - 1;
  const BareRate rate =
      bare_rate(world(), 8, {}, [&] { return world().rank() == worker ? 2.0 : 0.0; });
  EXPECT_DOUBLE_EQ(rate.own, world().rank() == worker ? 4 : 0);
  EXPECT_DOUBLE_EQ(rate.slowest, 4);
}

TEST(BareRate, RepeatsEquallyOftenOnAllRanksWithinItsBounds) {
  const auto calls_of = [](const Repeats& repeats, std::chrono::milliseconds of_the_last_rank) {
    int calls = 0;
    bare_rate(world(), 1, repeats, [&] {
      ++calls;
      if (world().rank() == world().size() - 1) std::this_thread::sleep_for(of_the_last_rank);
      return 1.0;
    });
    for (const int other : world().all_gather(calls)) EXPECT_EQ(other, calls);
    return calls;
  };
  using std::chrono::milliseconds;
  EXPECT_EQ(calls_of({.least = 2, .most = 9, .seconds = 100}, milliseconds(0)), 1 + 9);
  EXPECT_EQ(calls_of({.least = 2, .most = 9, .seconds = 0.01}, milliseconds(10)), 1 + 2);
  const int some = calls_of({.least = 1, .most = 1000, .seconds = 0.2}, milliseconds(10));
  EXPECT_GT(some, 1 + 1);
  EXPECT_LE(some, 1 + 20);
}

/// Notes what is asked for; gathers nothing.
class NotingCommunicator final : public Communicator {
 public:
  void all_gather(const void* send, void* recv, std::size_t bytes, Stream&) override {
    ++gathers;
    in_place &=
        send == static_cast<std::byte*>(recv) + static_cast<std::size_t>(world().rank()) * bytes;
    most_bytes = std::max(most_bytes, bytes);
    places.insert(recv);
  }
  void all_to_all(const void*, void*, std::size_t, Stream&) override { FAIL(); }

  int gathers = 0;
  bool in_place = true;
  std::size_t most_bytes = 0;
  std::set<void*> places;
};

TEST(GatherRate, GathersInPlaceWithOneUntimedGatherBeforeEachRepeat) {
  const auto device = make_cpu_device();
  const auto stream = device->make_stream("test");
  const std::size_t shard = 8 * kPageBytes;
  const std::size_t gathered = shard * static_cast<std::size_t>(world().size());
  const Buffer memory = device->allocate(2 * gathered + kPageBytes);  // two places and a rest
  NotingCommunicator communicator;
  gather_rate(world(), *device, communicator, memory.span(), shard, 3, *stream,
              {.least = 2, .most = 2});
  EXPECT_EQ(communicator.gathers, (1 + 2) * (1 + 3));
  EXPECT_TRUE(communicator.in_place);
  EXPECT_EQ(communicator.most_bytes, shard);
  EXPECT_EQ(communicator.places, (std::set<void*>{memory.data(), memory.data() + gathered}));
}

constexpr auto kPause = std::chrono::milliseconds(20);
constexpr double kPauseSeconds = 0.02;

void pause(Stream& stream) {
  dynamic_cast<CpuStream&>(stream).enqueue([] { std::this_thread::sleep_for(kPause); });
}

/// Takes its time for each gather, and never less.
class SlowCommunicator final : public Communicator {
 public:
  void all_gather(const void*, void*, std::size_t, Stream& stream) override { pause(stream); }
  void all_to_all(const void*, void*, std::size_t, Stream&) override { FAIL(); }
};

class SlowDevice final : public ForwardingDevice {
 public:
  using ForwardingDevice::ForwardingDevice;
  void copy(void*, const void*, std::size_t, Stream& stream) override { pause(stream); }
};

/// Not above what the pauses allow, and near it: machines that test are busy.
void expect_about(const BareRate& rate, double most) {
  EXPECT_LE(rate.slowest, most);
  EXPECT_LE(rate.own, most);
  EXPECT_GE(rate.own, rate.slowest);
  EXPECT_GT(rate.own, 0.1 * most);
}

TEST(GatherRate, CountsWhatComesFromTheOtherRanks) {
  if (world().size() == 1) GTEST_SKIP() << "nobody to receive from";
  const auto device = make_cpu_device();
  const auto stream = device->make_stream("test");
  SlowCommunicator communicator;
  const std::size_t shard = kPageBytes;
  const Buffer memory = device->allocate(shard * static_cast<std::size_t>(world().size()));
  const BareRate rate =
      gather_rate(world(), *device, communicator, memory.span(), shard, 3, *stream, {2, 2, 0});
  // The best of two is at most what one gather in its pause gives.
  expect_about(rate, static_cast<double>(shard) * (world().size() - 1) / kPauseSeconds);
}

TEST(MemoryCopyRate, CountsWhatIsReadAndWhatIsWritten) {
  SlowDevice device(make_cpu_device());
  const auto stream = device.make_stream("test");
  const std::size_t bytes = 16 * kPageBytes;
  const BareRate rate = memory_copy_rate(world(), device, bytes, *stream, {2, 2, 0});
  expect_about(rate, 2 * static_cast<double>(bytes) / kPauseSeconds);
}

}  // namespace
}  // namespace zi::test
