#include "offload/read_threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <vector>

#include "zero_infer/error.h"

namespace zi {
namespace {

TEST(ReadThreads, RunEveryStepOnce) {
  for (int threads : {0, 1, 3, 16}) {
    std::vector<std::atomic<int>> runs(200);
    ReadThreads reads(threads);
    reads.finish();  // nothing yet
    for (std::atomic<int>& n : runs) reads.start([&n] { ++n; });
    reads.finish();
    for (const std::atomic<int>& n : runs) EXPECT_EQ(n, 1);
  }
}

TEST(ReadThreads, WaitForAStepAndAllBeforeIt) {
  ReadThreads reads(3);
  std::promise<void> gate;
  const std::shared_future<void> open = gate.get_future().share();
  std::atomic<int> done = 0;
  reads.start([&] {
    open.wait();
    ++done;
  });
  const auto second = reads.start([&] { ++done; });
  const auto waiting = std::async(std::launch::async, [&] {
    while (done == 0) std::this_thread::yield();  // the second is done, the first is not
    gate.set_value();
  });
  reads.wait(second);
  EXPECT_EQ(done, 2);
}

TEST(ReadThreads, StopAfterAFailureAndRethrowTheFirst) {
  ReadThreads reads(1);
  std::atomic<int> after = 0;
  const auto failing = reads.start([] { throw IoError("broken"); });
  for (int i = 0; i < 10; ++i) reads.start([&] { ++after; });
  EXPECT_THROW(reads.wait(failing), IoError);
  EXPECT_THROW(reads.finish(), IoError);
  EXPECT_THROW(reads.wait(reads.start([] {})), IoError);
  EXPECT_EQ(after, 0);
}

TEST(ReadThreads, DropWhatHasNotBegunWhenTheyEnd) {
  std::atomic<bool> running = false;
  std::atomic<int> begun = 0;
  std::promise<void> gate;
  std::jthread opener;
  {
    ReadThreads reads(1);
    reads.start([&] {
      running = true;
      gate.get_future().wait();
      ++begun;
    });
    while (!running) std::this_thread::yield();
    for (int i = 0; i < 10; ++i) reads.start([&] { ++begun; });
    opener = std::jthread([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      gate.set_value();
    });
  }
  EXPECT_EQ(begun, 1);
}

}  // namespace
}  // namespace zi
