#include "comm/together.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "mpi_world.h"
#include "zero_infer/error.h"

namespace zi::test {
namespace {

TEST(RunTogether, ReturnsWhenTheSlowestStepHasEnded) {
  for (int slow = 0; slow < world().size(); ++slow) {
    std::atomic<bool> ended{false};
    const Together end = run_together(
        world(),
        [&] {
          if (world().rank() == slow) std::this_thread::sleep_for(std::chrono::milliseconds(30));
          ended = true;
        },
        nullptr);
    EXPECT_TRUE(end.ok());
    EXPECT_TRUE(ended);
    end.check(world());
    const char own = ended ? 1 : 0;
    for (char one : world().all_gather(own)) EXPECT_EQ(one, 1);
  }
}

TEST(RunTogether, TellsTheLowestFailureToAllAndThrowsItOnThatRank) {
  for (int lowest = 0; lowest < world().size(); ++lowest) {
    const Together end = run_together(
        world(),
        [&] {
          // The lower ranks are slow, but get out.
          if (world().rank() < lowest) std::this_thread::sleep_for(std::chrono::milliseconds(20));
          if (world().rank() >= lowest) {
            throw std::runtime_error("rank " + std::to_string(world().rank()));
          }
        },
        [](const std::string& text) { ADD_FAILURE() << text << ": nobody is stuck"; });
    EXPECT_EQ(end.failed_rank, lowest);
    EXPECT_EQ(end.text, "rank " + std::to_string(lowest));
    if (world().rank() == lowest) {
      EXPECT_THROW(end.check(world()), CommError);
    } else {
      EXPECT_THROW(end.check(world()), PeerError);
    }
    EXPECT_TRUE(world().leaving_together());
  }
}

TEST(RunTogether, TakesExceptionsOfAnyType) {
  const Together end = run_together(
      world(), [] { throw 3; }, nullptr);
  EXPECT_EQ(end.failed_rank, 0);
  EXPECT_NE(end.text.find("unknown type"), std::string::npos);
}

}  // namespace
}  // namespace zi::test
