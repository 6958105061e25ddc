// The watch over ranks that are all there; what it does when one is not, the tests
// `world_ends_by_stopped` and tests/hosts show.

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "mpi_world.h"
#include "zero_infer/host_watch.h"

namespace zi::test {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(HostWatchTest, ARankThatIsBusyForLongerThanTheLimitIsNotGone) {
  const HostWatch watch(world(), {.limit = seconds(2), .advice = {}});
  if (world().rank() == world().size() - 1) {
    volatile double x = 1;
    for (const auto end = Clock::now() + milliseconds(3500); Clock::now() < end;) x = x * 1.0001;
  }
  world().barrier();
  EXPECT_EQ(watch.gone(), -1);
}

TEST(HostWatchTest, EndsWhenTheSlowestRankHasComeToTheEnd) {
  for (int slow = 0; slow < world().size(); ++slow) {
    auto reached = Clock::time_point();
    {
      const HostWatch watch(world(), {.limit = seconds(20), .advice = {}});
      world().barrier();
      if (world().rank() == slow) std::this_thread::sleep_for(milliseconds(200));
      reached = Clock::now();
    }
    const auto left = Clock::now();
    // The clock is the host's.
    const auto all = world().all_gather(reached.time_since_epoch().count());
    EXPECT_GE(left.time_since_epoch().count(), all[static_cast<std::size_t>(slow)]);
  }
}

TEST(HostWatchTest, WithoutALimitSilenceIsNotCounted) {
  for (int i = 0; i < 20; ++i) {
    const HostWatch watch(world(), {.limit = seconds(0), .advice = {}});
    EXPECT_EQ(watch.gone(), -1);
  }
}

}  // namespace
}  // namespace zi::test
