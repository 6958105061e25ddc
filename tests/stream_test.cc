#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>
#include <stdexcept>
#include <vector>

#include "backend/host/cgroup.h"
#include "zero_infer/backend.h"
#include "zero_infer/cpu_stream.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

struct Streams : ::testing::Test {
  std::unique_ptr<Device> device = make_cpu_device();
  CpuStream first{"first"};
  CpuStream second{"second"};
};

TEST_F(Streams, RunTasksInTheOrderInWhichTheyWereEnqueued) {
  std::vector<int> order;
  for (int i = 0; i < 1000; ++i) first.enqueue([&order, i] { order.push_back(i); });
  first.synchronize();
  ASSERT_EQ(order.size(), 1000u);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(order[static_cast<std::size_t>(i)], i);
}

TEST_F(Streams, WorkBehindAWaitRunsAfterTheWorkBeforeTheRecord) {
  const auto event = device->make_event();
  std::promise<void> gate;
  int value = 0;  // plain on purpose: ThreadSanitizer checks the ordering
  first.enqueue([&] {
    gate.get_future().wait();
    value = 7;
  });
  first.record(*event);
  second.wait(*event);
  int seen = 0;
  second.enqueue([&] { seen = value; });
  EXPECT_FALSE(event->reached());
  gate.set_value();
  second.synchronize();
  EXPECT_EQ(seen, 7);
  EXPECT_TRUE(event->reached());
}

TEST_F(Streams, AnEventThatWasNeverRecordedCountsAsReached) {
  const auto event = device->make_event();
  EXPECT_TRUE(event->reached());
  event->synchronize();
  bool ran = false;
  first.wait(*event);
  first.enqueue([&] { ran = true; });
  first.synchronize();
  EXPECT_TRUE(ran);
}

TEST_F(Streams, AWaitIsForTheRecordBeforeItAndNotForLaterOnes) {
  const auto event = device->make_event();
  std::promise<void> gate;
  first.record(*event);
  second.wait(*event);
  first.enqueue([&] { gate.get_future().wait(); });
  first.record(*event);
  second.synchronize();  // would hang if it waited for the second record
  EXPECT_FALSE(event->reached());
  gate.set_value();
  event->synchronize();
  EXPECT_TRUE(event->reached());
}

TEST_F(Streams, AnEventRecordedOnTwoStreamsWaitsForEachOfThem) {
  const auto event = device->make_event();
  std::promise<void> gate;
  int value = 0;
  first.enqueue([&] {
    gate.get_future().wait();
    value = 1;
  });
  first.record(*event);
  CpuStream third("third");
  third.wait(*event);  // for the first stream
  int seen = 0;
  third.enqueue([&] { seen = value; });
  second.record(*event);
  second.synchronize();  // the later record is reached first
  EXPECT_TRUE(event->reached());
  gate.set_value();
  third.synchronize();
  EXPECT_EQ(seen, 1);
}

TEST_F(Streams, AnEventMayBeDestroyedWhileAStreamStillWaitsForIt) {
  auto event = device->make_event();
  std::promise<void> gate;
  first.enqueue([&] { gate.get_future().wait(); });
  first.record(*event);
  second.wait(*event);
  event.reset();
  gate.set_value();
  second.synchronize();
}

TEST_F(Streams, AFailedTaskIsRethrownByEverySynchronizeAndLaterTasksAreSkipped) {
  bool ran = false;
  const auto event = device->make_event();
  first.enqueue([] { throw CommError("peer 3 is gone"); });
  first.enqueue([&] { ran = true; });
  first.record(*event);
  event->synchronize();  // is reached all the same
  EXPECT_THAT([&] { first.synchronize(); }, ThrowsMessage<CommError>("peer 3 is gone"));
  EXPECT_THAT([&] { first.synchronize(); }, ThrowsMessage<CommError>("peer 3 is gone"));
  first.enqueue([] { throw std::runtime_error("later"); });
  EXPECT_THROW(first.synchronize(), CommError);
  EXPECT_FALSE(ran);
}

TEST_F(Streams, AStreamThatWaitsForAFailedOneFailsWithTheSameError) {
  const auto event = device->make_event();
  bool ran = false;
  first.enqueue([] { throw IoError("extent 5 is damaged"); });
  first.record(*event);
  second.wait(*event);
  second.enqueue([&] { ran = true; });
  EXPECT_THAT([&] { second.synchronize(); }, ThrowsMessage<IoError>("extent 5 is damaged"));
  EXPECT_FALSE(ran);
}

TEST_F(Streams, TheDestructorWaitsForTheWork) {
  int done = 0;
  {
    CpuStream stream("short");
    for (int i = 0; i < 100; ++i) stream.enqueue([&] { ++done; });
  }
  EXPECT_EQ(done, 100);
}

TEST_F(Streams, APipelineOfThreeStreamsOverTwoSlotsKeepsItsOrder) {
  constexpr int kUnits = 500;
  CpuStream third("third");
  int slots[2] = {};  // written by first, changed by second, read by third: no lock but the events
  std::unique_ptr<Event> filled[2], changed[2], free[2];
  for (auto* events : {filled, changed, free}) {
    for (int i = 0; i < 2; ++i) events[i] = device->make_event();
  }
  std::vector<int> seen;
  for (int unit = 0; unit < kUnits; ++unit) {
    const int i = unit % 2;
    first.wait(*free[i]);
    first.enqueue([&slots, i, unit] { slots[i] = unit; });
    first.record(*filled[i]);
    second.wait(*filled[i]);
    second.enqueue([&slots, i] { slots[i] *= 2; });
    second.record(*changed[i]);
    third.wait(*changed[i]);
    third.enqueue([&, i] { seen.push_back(slots[i]); });
    third.record(*free[i]);
  }
  third.synchronize();
  ASSERT_EQ(seen.size(), static_cast<std::size_t>(kUnits));
  for (int unit = 0; unit < kUnits; ++unit) {
    EXPECT_EQ(seen[static_cast<std::size_t>(unit)], 2 * unit);
  }
}

TEST_F(Streams, ElapsedTimeRunsFromEventToEvent) {
  const auto start = device->make_event();
  const auto end = device->make_event();
  first.record(*start);
  first.enqueue([] { std::this_thread::sleep_for(std::chrono::milliseconds(5)); });
  first.record(*end);
  end->synchronize();
  EXPECT_GE(device->elapsed_seconds(*start, *end), 0.005);
  EXPECT_LE(device->elapsed_seconds(*end, *start), -0.005);
  const auto fresh = device->make_event();
  EXPECT_THROW(device->elapsed_seconds(*fresh, *end), Error);
}

TEST(CpuDevice, GivesZeroedPageAlignedMemoryOfAnySize) {
  const auto device = make_cpu_device();
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{4096}, std::size_t{5u << 20}}) {
    const Buffer buffer = device->allocate(bytes);
    EXPECT_EQ(buffer.bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % 4096, 0u);
    for (const std::byte b : buffer.span()) ASSERT_EQ(b, std::byte{0});
    std::memset(buffer.data(), 1, bytes);
  }
  EXPECT_EQ(device->allocate(0).bytes(), 0u);
}

TEST(CpuDevice, RefusesMoreThanThereIsWithTheNumbers) {
  const auto device = make_cpu_device();
  const MemoryInfo info = device->memory();
  EXPECT_GT(info.free_bytes, 0u);
  EXPECT_LE(info.free_bytes, info.total_bytes);
  EXPECT_THAT([&] { device->allocate(info.total_bytes + 1); },
              ThrowsMessage<ConfigError>(HasSubstr("GiB is free on this host")));
  EXPECT_THROW(device->allocate(SIZE_MAX), ConfigError);
}

TEST(CpuDevice, SharesALargeCopyAmongThreadsWithoutASeam) {
  const auto device = make_cpu_device(3);
  const auto stream = device->make_stream("copies");
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{5000}, (std::size_t{7} << 20) + 13}) {
    std::vector<unsigned char> from(bytes + 1, 0xa5), to(bytes + 1, 0x5a);
    for (std::size_t i = 0; i < bytes; ++i) from[i] = static_cast<unsigned char>(i * 31 + i / 4096);
    device->copy(to.data(), from.data(), bytes, *stream);
    stream->synchronize();
    EXPECT_TRUE(std::equal(from.begin(), from.end() - 1, to.begin())) << bytes;
    EXPECT_EQ(to.back(), 0x5a) << "after the end of " << bytes;
  }
}

TEST(CpuDevice, CopiesAndZeroesInStreamOrder) {
  const auto device = make_cpu_device();
  const auto stream = device->make_stream("copies");
  std::vector<int> from(1000, 3);
  std::vector<int> to(1000, 0);
  device->copy(to.data(), from.data(), 4000, *stream);
  device->zero(to.data(), 8, *stream);
  device->copy(nullptr, nullptr, 0, *stream);
  stream->synchronize();
  EXPECT_EQ(to[0], 0);
  EXPECT_EQ(to[1], 0);
  EXPECT_EQ(to[2], 3);
  EXPECT_EQ(to[999], 3);
}

struct Cgroups : ::testing::Test {
  std::filesystem::path root = std::filesystem::path(::testing::TempDir()) /
                               ::testing::UnitTest::GetInstance()->current_test_info()->name();
  void SetUp() override { std::filesystem::remove_all(root); }
  void TearDown() override { std::filesystem::remove_all(root); }
  void put(const std::string& file, const std::string& text) const {
    std::filesystem::create_directories((root / file).parent_path());
    std::ofstream(root / file) << text;
  }
};

TEST_F(Cgroups, OfVersion2CountTheTightestParentAndLeaveOutPageCache) {
  put("job/step/memory.max", "max\n");
  put("job/memory.max", "1000000\n");
  put("job/memory.current", "700000\n");
  put("job/memory.stat", "anon 300000\ninactive_file 350000\nactive_file 50000\n");
  put("job/cpu.max", "150000 100000\n");
  put("job/step/cpu.max", "max 100000\n");
  const CgroupLimits limits = read_cgroup_limits(root, "0::/job/step\n");
  EXPECT_EQ(limits.memory_bytes, 1000000u);
  EXPECT_EQ(limits.memory_free_bytes, 700000u);
  EXPECT_DOUBLE_EQ(limits.cpus, 1.5);
}

TEST_F(Cgroups, OfVersion1AreFoundByController) {
  put("memory/job/memory.limit_in_bytes", "500\n");
  put("memory/job/memory.usage_in_bytes", "900\n");  // above a limit that was lowered
  put("cpu/cpu.cfs_quota_us", "200000\n");
  put("cpu/cpu.cfs_period_us", "100000\n");
  const CgroupLimits limits =
      read_cgroup_limits(root, "4:memory:/job\n2:cpu,cpuacct:/of/the/host\n1:name=systemd:/\n");
  EXPECT_EQ(limits.memory_bytes, 500u);
  EXPECT_EQ(limits.memory_free_bytes, 0u);
  EXPECT_DOUBLE_EQ(limits.cpus, 2);
}

TEST_F(Cgroups, ThatCannotBeReadDoNotLimit) {
  put("job/memory.max", "nonsense\n");
  const CgroupLimits limits = read_cgroup_limits(root, "0::/job\nbroken line\n");
  EXPECT_EQ(limits.memory_bytes, SIZE_MAX);
  EXPECT_EQ(limits.cpus, std::numeric_limits<double>::infinity());
}

struct Threads : ::testing::Test {
  void SetUp() override { unsetenv("OMP_NUM_THREADS"); }
  void TearDown() override { unsetenv("OMP_NUM_THREADS"); }
};

TEST_F(Threads, OfARankAreItsShareOfTheCoresAndAtLeastOne) {
  const int alone = threads_per_rank(1);
  EXPECT_GE(alone, 1);
  EXPECT_LE(threads_per_rank(2), std::max(1, (alone + 1) / 2));
  EXPECT_EQ(threads_per_rank(100000), 1);
  EXPECT_THROW(threads_per_rank(0), ConfigError);
}

TEST_F(Threads, FollowOmpNumThreads) {
  setenv("OMP_NUM_THREADS", "3,1", 1);
  EXPECT_EQ(threads_per_rank(7), 3);
  for (const char* bad : {"zero", "0", "-2", "4x"}) {
    setenv("OMP_NUM_THREADS", bad, 1);
    EXPECT_THAT([] { threads_per_rank(1); }, ThrowsMessage<ConfigError>(HasSubstr(bad)));
  }
}

}  // namespace
}  // namespace zi
