#include "backend/host/thread_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

namespace zi {
namespace {

/// Who called each index, and in which order, by thread.
struct Calls {
  explicit Calls(int threads) : of_thread(static_cast<std::size_t>(threads)) {}
  void add(std::int64_t index, int thread) {
    of_thread[static_cast<std::size_t>(thread)].push_back(index);
  }
  std::vector<std::int64_t> sorted() const {
    std::vector<std::int64_t> all;
    for (const auto& calls : of_thread) all.insert(all.end(), calls.begin(), calls.end());
    std::sort(all.begin(), all.end());
    return all;
  }
  std::vector<std::vector<std::int64_t>> of_thread;
};

std::vector<std::int64_t> counted(std::int64_t count) {
  std::vector<std::int64_t> all;
  for (std::int64_t index = 0; index < count; ++index) all.push_back(index);
  return all;
}

TEST(ThreadPool, CallsEachIndexOnceForAnyCount) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (const std::int64_t count : {0, 1, 2, 3, 7, 8, 9, 1000}) {
      Calls calls(threads);
      pool.run(count, [&](std::int64_t index, int thread) { calls.add(index, thread); });
      EXPECT_EQ(calls.sorted(), counted(count)) << threads << " threads";
    }
  }
}

TEST(ThreadPool, GivesAThreadOneRunOfIndicesAsLongAsAllWork) {
  constexpr int kThreads = 4;
  constexpr std::int64_t kOfThread = 25;
  ThreadPool pool(kThreads);
  Calls calls(kThreads);
  std::atomic<int> begun{0};
  // Each thread waits in its first call until all have one: then nobody takes another's share
  // before its own is done.
  pool.run(kThreads * kOfThread, [&](std::int64_t index, int thread) {
    if (calls.of_thread[static_cast<std::size_t>(thread)].empty()) {
      ++begun;
      while (begun < kThreads) std::this_thread::yield();
    }
    calls.add(index, thread);
  });
  EXPECT_EQ(calls.sorted(), counted(kThreads * kOfThread));
  for (int thread = 0; thread < kThreads; ++thread) {
    const auto& own = calls.of_thread[static_cast<std::size_t>(thread)];
    ASSERT_FALSE(own.empty());
    EXPECT_EQ(own.front(), thread * kOfThread);
    // Others take from the end of a run, so that its owner's indices follow one another.
    for (std::size_t i = 1; i < own.size() && own[i] / kOfThread == thread; ++i) {
      EXPECT_EQ(own[i], own[i - 1] + 1);
    }
  }
}

TEST(ThreadPool, DoesTheShareOfAThreadThatIsBusy) {
  ThreadPool pool(2);
  Calls calls(2);
  std::atomic<int> done{0};
  constexpr std::int64_t kCount = 64;
  // Whoever comes to index 0 stays there until all others are done: they can only be done by the
  // other thread.
  pool.run(kCount, [&](std::int64_t index, int thread) {
    if (index == 0) {
      while (done < kCount - 1) std::this_thread::yield();
    }
    calls.add(index, thread);
    ++done;
  });
  EXPECT_EQ(calls.sorted(), counted(kCount));
}

TEST(ThreadPool, DealsEachPartOnceAndLargeOnesToEachThreadFirst) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (const std::int64_t count : {1, 2, 3, 7, 8, 9, 100}) {
      std::vector<std::int64_t> parts;
      for (std::int64_t index = 0; index < count; ++index)
        parts.push_back(pool.dealt(index, count));
      const std::int64_t first_of_second = count / threads + (count % threads > 0 ? 1 : 0);
      EXPECT_EQ(parts.front(), 0);
      if (threads > 1 && count > 1) {
        EXPECT_EQ(parts[static_cast<std::size_t>(first_of_second)], 1);
      }
      std::sort(parts.begin(), parts.end());
      EXPECT_EQ(parts, counted(count)) << threads << " threads";
    }
  }
}

TEST(ThreadPool, EndsAJobAtItsFirstExceptionAndTakesTheNextOne) {
  ThreadPool pool(3);
  std::atomic<std::int64_t> calls{0};
  EXPECT_THROW(pool.run(1'000'000,
                        [&](std::int64_t, int) {
                          ++calls;
                          throw std::runtime_error("no");
                        }),
               std::runtime_error);
  EXPECT_LE(calls, 3);
  calls = 0;
  pool.run(100, [&](std::int64_t, int) { ++calls; });
  EXPECT_EQ(calls, 100);
}

}  // namespace
}  // namespace zi
