#include "offload/nvme_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "offload/shard_file.h"
#include "tests/shard_test_util.h"
#include "zero_infer/backend.h"

namespace zi {
namespace {

using test::flip_byte;
using test::LazyDevice;
using test::message_of;
using test::TestUnits;
using testing::AllOf;
using testing::HasSubstr;
namespace fs = std::filesystem;

class NvmeStoreTest : public testing::Test {
 protected:
  NvmeStoreTest() : path_(units_.prepare(directory_.path())) {}

  /// Finishes the unit into memory of its own.
  struct Arrival {
    int unit;
    std::vector<std::byte> bytes;
  };
  void finish(NvmeStore& store, int unit, Stream& copies, std::vector<Arrival>& arrivals) {
    arrivals.push_back({unit, std::vector<std::byte>(units_.shard_bytes(unit))});
    store.finish_read(unit, arrivals.back().bytes.data(), copies);
  }
  void expect_shards(const std::vector<Arrival>& arrivals) const {
    for (const Arrival& arrival : arrivals) {
      EXPECT_EQ(arrival.bytes, units_.shard(arrival.unit)) << "unit " << arrival.unit;
    }
  }
  ShardHeader header() const { return test::read_header(path_); }

  test::TemporaryDirectory directory_;
  TestUnits units_{6};
  fs::path path_;
};

TEST_F(NvmeStoreTest, AllWaysOfReadingBringTheSameBytes) {
  for (const bool io_uring : {true, false}) {
    for (const bool direct : {true, false}) {
      for (const int depth : {1, 2, 5, 64}) {
        LazyDevice device;
        NvmeStore store(device, path_, units_.key, units_.sizes(),
                        units_.options(depth, io_uring, direct));
        const auto copies = device.make_stream("copies");
        std::vector<Arrival> arrivals;
        arrivals.reserve(6);
        for (int u = 0; u < units_.count(); ++u) finish(store, u, *copies, arrivals);
        copies->synchronize();
        expect_shards(arrivals);
        EXPECT_THAT(store.method(), HasSubstr(io_uring ? "io_uring" : "pread"));
        if (!direct) {
          EXPECT_THAT(store.method(), HasSubstr("buffered"));
        }
        EXPECT_EQ(device.pinned_bytes,
                  TestUnits::kExtentBytes * static_cast<std::size_t>(depth + NvmeOptions{}.spare));
      }
    }
  }
}

TEST_F(NvmeStoreTest, UnitsMayBeStartedFarAheadAndTwice) {
  const auto device = make_cpu_device();
  NvmeStore store(*device, path_, units_.key, units_.sizes(), units_.options());
  const auto copies = device->make_stream("copies");
  std::vector<Arrival> arrivals;
  arrivals.reserve(20);
  const std::vector<int> order = {3, 3, 0, 5, 3, 1, 0, 0};
  for (const int u : order) store.start_read(u);
  for (const int u : order) finish(store, u, *copies, arrivals);
  finish(store, 2, *copies, arrivals);  // not started: started now
  copies->synchronize();
  expect_shards(arrivals);
}

TEST_F(NvmeStoreTest, ManyPassesInRandomOrderWithCopiesOnAThread) {
  const auto device = make_cpu_device();
  for (const bool io_uring : {true, false}) {
    NvmeStore store(*device, path_, units_.key, units_.sizes(), units_.options(3, io_uring));
    const auto copies = device->make_stream("copies");
    std::vector<Arrival> arrivals;
    std::deque<int> started;
    arrivals.reserve(200);
    for (std::uint64_t step = 0; arrivals.size() < 200; ++step) {
      const std::uint64_t dice = random_bits(3, 0, step);
      if (started.size() < 4 && dice % 2 == 0) {
        started.push_back(static_cast<int>(dice / 2 % 6));
        store.start_read(started.back());
      } else {
        const int unit = started.empty() ? static_cast<int>(dice / 2 % 6) : started.front();
        if (!started.empty()) started.pop_front();
        finish(store, unit, *copies, arrivals);
      }
    }
    copies->synchronize();
    expect_shards(arrivals);
  }
}

TEST_F(NvmeStoreTest, StagingIsNotReusedBeforeItsCopyIsDone) {
  LazyDevice device;  // copies run as late as they can
  NvmeStore store(device, path_, units_.key, units_.sizes(), units_.options(2));
  const auto copies = device.make_stream("copies");
  const auto queue = dynamic_cast<LazyDevice::LazyStream&>(*copies).queue;
  std::vector<Arrival> arrivals;
  arrivals.reserve(12);
  for (int u = 0; u < 2 * units_.count(); ++u) {
    store.start_read(u % units_.count());
    finish(store, u % units_.count(), *copies, arrivals);
    EXPECT_LE(queue->tasks.size(), NvmeOptions{.depth = 2}.slots())
        << "a copy for each staging buffer";
    EXPECT_GT(queue->tasks.size(), 0u) << "it waited for a copy that it did not need";
  }
  copies->synchronize();
  expect_shards(arrivals);
}

TEST_F(NvmeStoreTest, ADamagedExtentIsNamedAndItsUnitNotHandedOn) {
  const ShardHeader header = this->header();
  const ShardUnit& unit = *header.find(3);
  const ShardExtent extent = header.extent(unit, 1);
  flip_byte(path_, extent.offset + 99);
  for (const bool io_uring : {true, false}) {
    LazyDevice device;
    NvmeStore store(device, path_, units_.key, units_.sizes(), units_.options(4, io_uring));
    const auto copies = device.make_stream("copies");
    std::vector<Arrival> arrivals;
    arrivals.reserve(2);
    finish(store, 2, *copies, arrivals);
    std::vector<std::byte> dst(unit.bytes);
    const std::string message =
        message_of<IoError>([&] { store.finish_read(3, dst.data(), *copies); });
    EXPECT_THAT(message, AllOf(HasSubstr(path_.string()), HasSubstr("checksum of unit 3"),
                               HasSubstr(fmt::format("bytes {}..{}", extent.offset,
                                                     extent.offset + extent.bytes - 1)),
                               HasSubstr(fmt::format("stored {:016x}", extent.checksum)),
                               HasSubstr("remove it")));
    copies->synchronize();
    expect_shards(arrivals);
    EXPECT_EQ(message_of<IoError>([&] { store.start_read(0); }), message) << "it stays failed";
  }
}

TEST_F(NvmeStoreTest, AFileThatIsCutShortWhileItIsOpenIsAnError) {
  for (const bool io_uring : {true, false}) {
    for (const bool direct : {true, false}) {
      path_ = units_.prepare(directory_.path());
      LazyDevice device;
      NvmeStore store(device, path_, units_.key, units_.sizes(),
                      units_.options(2, io_uring, direct));
      const ShardExtent extent = header().extent(*header().find(5), 1);
      fs::resize_file(path_, extent.offset + 5000);
      std::vector<std::byte> dst(units_.shard_bytes(5));
      const auto copies = device.make_stream("copies");  // its copies are done before dst goes
      EXPECT_THAT(
          message_of<IoError>([&] { store.finish_read(5, dst.data(), *copies); }),
          AllOf(HasSubstr(path_.string()), HasSubstr("cut short"),
                HasSubstr(fmt::format("{} bytes at offset {}", extent.bytes, extent.offset))));
      fs::remove(path_);
    }
  }
}

TEST_F(NvmeStoreTest, AForeignFileIsRefused) {
  LazyDevice device;
  ShardFileKey key = units_.key;
  key.world = 3;
  EXPECT_THAT(
      message_of<IoError>([&] { NvmeStore(device, path_, key, units_.sizes(), units_.options()); }),
      HasSubstr("was written for 2 ranks, this job has 3; remove it or run with -np 2"));
  EXPECT_THAT(message_of<IoError>([&] {
                NvmeStore(device, path_, units_.key, units_.sizes(), NvmeOptions{});  // 4 MiB
              }),
              HasSubstr("extents of 16384 bytes"));
  EXPECT_THAT(message_of<IoError>([&] {
                NvmeStore(device, path_ / "x", units_.key, units_.sizes(), units_.options());
              }),
              HasSubstr("is a plain file, a folder is needed there"));
  EXPECT_THROW(NvmeStore(device, path_, units_.key, units_.sizes(), units_.options(0)),
               ConfigError);
}

TEST_F(NvmeStoreTest, AFileWithShardsOfOtherSizesIsRefusedBeforeAnythingIsCopied) {
  for (const std::int64_t rows : {20, 500}) {
    // In place of the file that was prepared, with right checksums and for the same key.
    fs::remove(path_);
    TestUnits(6, rows).prepare(directory_.path());
    LazyDevice device;
    EXPECT_THAT(
        message_of<IoError>(
            [&] { NvmeStore(device, path_, units_.key, units_.sizes(), units_.options()); }),
        AllOf(HasSubstr(path_.string()),
              HasSubstr(fmt::format("holds {} bytes of unit 0, this job needs {}",
                                    TestUnits(1, rows).shard_bytes(0), units_.shard_bytes(0))),
              HasSubstr("remove it")));
  }
}

TEST_F(NvmeStoreTest, AFileThatLacksAUnitIsRefusedBeforeAnythingIsCopied) {
  fs::remove(path_);
  units_.prepare(directory_.path(), 0, 5);
  LazyDevice device;
  EXPECT_THAT(message_of<IoError>(
                  [&] { NvmeStore(device, path_, units_.key, units_.sizes(), units_.options()); }),
              AllOf(HasSubstr(path_.string()), HasSubstr("lacks units")));
  fs::remove(path_);
  EXPECT_THAT(message_of<IoError>(
                  [&] { NvmeStore(device, path_, units_.key, units_.sizes(), units_.options()); }),
              HasSubstr("is gone"));
}

TEST_F(NvmeStoreTest, ServesOnlyTheUnitsThatItWasGivenTheSizesOf) {
  LazyDevice device;
  NvmeStore store(device, path_, units_.key, units_.sizes(2, 4), units_.options());
  const auto copies = device.make_stream("copies");
  std::vector<Arrival> arrivals;
  arrivals.reserve(2);
  finish(store, 2, *copies, arrivals);
  finish(store, 3, *copies, arrivals);
  copies->synchronize();
  expect_shards(arrivals);
  EXPECT_THAT(message_of<Error>([&] { store.start_read(1); }), HasSubstr("unit 1 is not in"));
}

TEST_F(NvmeStoreTest, AUnitOutOfTurnOrUnknownIsRefused) {
  LazyDevice device;
  const auto copies = device.make_stream("copies");
  std::vector<std::byte> dst(units_.shard_bytes(5));
  NvmeStore store(device, path_, units_.key, units_.sizes(), units_.options());
  store.start_read(2);
  EXPECT_THAT(message_of<Error>([&] { store.finish_read(3, dst.data(), *copies); }),
              HasSubstr("the read of unit 2 was started before"));
  NvmeStore other(device, path_, units_.key, units_.sizes(), units_.options());
  EXPECT_THAT(message_of<Error>([&] { other.start_read(77); }), HasSubstr("unit 77 is not in"));
}

TEST_F(NvmeStoreTest, MayBeDestroyedWithReadsAndCopiesInFlight) {
  for (const bool io_uring : {true, false}) {
    for (int round = 0; round < 20; ++round) {
      const auto device = make_cpu_device();
      const auto copies = device->make_stream("copies");
      std::vector<Arrival> arrivals;
      arrivals.reserve(2);
      {
        NvmeStore store(*device, path_, units_.key, units_.sizes(), units_.options(8, io_uring));
        store.start_read(4);
        store.start_read(5);
        if (round % 2 == 0) finish(store, 4, *copies, arrivals);
      }
      copies->synchronize();
      expect_shards(arrivals);
    }
  }
}

TEST_F(NvmeStoreTest, KeepsReadingItsFileWhileANewOneTakesItsName) {
  LazyDevice device;
  NvmeStore store(device, path_, units_.key, units_.sizes(), units_.options());
  const TestUnits more(8);
  more.prepare(directory_.path());
  const auto copies = device.make_stream("copies");
  std::vector<Arrival> arrivals;
  arrivals.reserve(6);
  for (int u = 0; u < units_.count(); ++u) finish(store, u, *copies, arrivals);
  copies->synchronize();
  expect_shards(arrivals);
}

TEST_F(NvmeStoreTest, StagingIsSmallerWhenEveryShardIs) {
  test::TemporaryDirectory directory;
  const TestUnits small(1, 1);
  const fs::path path = small.prepare(directory.path());
  LazyDevice device;
  NvmeStore store(device, path, small.key, small.sizes(), small.options(3));
  EXPECT_EQ(device.pinned_bytes, NvmeOptions{.depth = 3}.slots() * small.shard_bytes(0));
  EXPECT_LT(small.shard_bytes(0), TestUnits::kExtentBytes);
  const auto copies = device.make_stream("copies");
  std::vector<std::byte> dst(small.shard_bytes(0));
  store.finish_read(0, dst.data(), *copies);
  copies->synchronize();
  EXPECT_EQ(dst, small.shard(0));
}

TEST_F(NvmeStoreTest, ABareReadIsMeasuredForAnyAmount) {
  LazyDevice device;
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{100'000}, std::size_t{3'000'000}}) {
    for (const bool io_uring : {true, false}) {
      EXPECT_GT(measure_bare_read(device, path_, units_.options(16, io_uring), bytes), 0);
    }
  }
}

}  // namespace
}  // namespace zi
