#pragma once

// What every ShardStore promises, as one suite over all of them. A test file includes this header
// and adds its store:
//   INSTANTIATE_TEST_SUITE_P(Nvme, ShardStoreConformance, testing::Values(StoreCase{"nvme",
//   make_nvme}),
//                            store_case_name);

#include <gtest/gtest.h>

#include <chrono>
#include <cstddef>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "offload/shard_store.h"
#include "zero_infer/backend.h"
#include "zero_infer/bytes.h"
#include "zero_infer/cpu_stream.h"
#include "zero_infer/device.h"
#include "zero_infer/error.h"
#include "zero_infer/random.h"

namespace zi::test {

/// The shards of some units; every size is a multiple of 4096, as PartitionLayout makes them.
using ShardContents = std::map<int, std::vector<std::byte>>;

struct StoreCase {
  std::string name;
  /// A store that holds these shards and nothing else.
  std::function<std::unique_ptr<ShardStore>(Device& device, const ShardContents& contents)> make;
};

inline std::string store_case_name(const testing::TestParamInfo<StoreCase>& info) {
  return info.param.name;
}
inline void PrintTo(const StoreCase& store_case, std::ostream* out) { *out << store_case.name; }

class ShardStoreConformance : public testing::TestWithParam<StoreCase> {
 protected:
  static constexpr std::size_t kGuardBytes = 256;
  static constexpr std::byte kGuard{0xA5};

  ShardStoreConformance() {
    // Units out of order and with gaps; sizes from one page to several reads.
    for (const auto& [unit, pages] :
         std::vector<std::pair<int, std::size_t>>{{5, 1}, {0, 700}, {3, 17}, {11, 2}, {4, 256}}) {
      std::vector<std::byte> shard(pages * kPageBytes);
      for (std::size_t i = 0; i < shard.size(); ++i) {
        shard[i] = static_cast<std::byte>(random_bits(7, static_cast<std::uint64_t>(unit), i));
      }
      contents_.emplace(unit, std::move(shard));
    }
    store_ = GetParam().make(*device_, contents_);
    copies_ = device_->make_stream("copies");
  }

  /// Device memory for one shard between guard bytes.
  struct Destination {
    Buffer memory;
    std::size_t bytes;
    std::byte* data() const { return memory.data() + kPageBytes; }
  };
  Destination destination(int unit) const {
    const std::size_t bytes = contents_.at(unit).size();
    Destination dst{device_->allocate(bytes + 2 * kPageBytes), bytes};
    std::memset(dst.memory.data(), std::to_integer<int>(kGuard), dst.memory.bytes());
    return dst;
  }
  void expect_arrived(int unit, const Destination& dst) const {
    EXPECT_EQ(std::memcmp(dst.data(), contents_.at(unit).data(), dst.bytes), 0) << "unit " << unit;
    for (std::size_t i = 0; i < kGuardBytes; ++i) {
      ASSERT_EQ(dst.data()[dst.bytes + i], kGuard) << "byte " << i << " after unit " << unit;
      ASSERT_EQ(*(dst.data() - 1 - i), kGuard) << "byte " << i << " before unit " << unit;
    }
  }

  std::unique_ptr<Device> device_ = make_cpu_device();
  ShardContents contents_;
  std::unique_ptr<ShardStore> store_;
  std::unique_ptr<Stream> copies_;  // destroyed first: waits for copies out of the store
};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(ShardStoreConformance);

TEST_P(ShardStoreConformance, BringsEveryByteOfAShardAndNothingElse) {
  for (const auto& [unit, shard] : contents_) {
    const Destination dst = destination(unit);
    store_->start_read(unit);
    store_->finish_read(unit, dst.data(), *copies_);
    copies_->synchronize();
    expect_arrived(unit, dst);
  }
}

TEST_P(ShardStoreConformance, FinishesReadsThatWereAllStartedAhead) {
  std::map<int, Destination> arrived;
  for (const auto& [unit, shard] : contents_) arrived.emplace(unit, destination(unit));
  for (const auto& [unit, shard] : contents_) store_->start_read(unit);
  for (const auto& [unit, dst] : arrived) store_->finish_read(unit, dst.data(), *copies_);
  copies_->synchronize();
  for (const auto& [unit, dst] : arrived) expect_arrived(unit, dst);
}

TEST_P(ShardStoreConformance, StartsReadsOfTheNextPassBeforeThisOneIsFinished) {
  std::vector<int> order;
  for (int pass = 0; pass < 3; ++pass) {
    for (const auto& [unit, shard] : contents_) order.push_back(unit);
  }
  // The way of the layer fetcher: each unit is under way at most once.
  const std::size_t window = contents_.size();
  for (std::size_t i = 0; i < window; ++i) store_->start_read(order[i]);
  for (std::size_t i = 0; i < order.size(); ++i) {
    const Destination dst = destination(order[i]);
    store_->finish_read(order[i], dst.data(), *copies_);
    if (i + window < order.size()) store_->start_read(order[i + window]);
    copies_->synchronize();
    expect_arrived(order[i], dst);
  }
}

TEST_P(ShardStoreConformance, CopiesInTheOrderOfTheStream) {
  const Destination dst = destination(3);
  // Older work of the stream that is slow: a copy past the queue would be overwritten by it.
  dynamic_cast<CpuStream&>(*copies_).enqueue([&dst] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::memset(dst.data(), 0, dst.bytes);
  });
  store_->start_read(3);
  store_->finish_read(3, dst.data(), *copies_);
  copies_->synchronize();
  expect_arrived(3, dst);
}

TEST_P(ShardStoreConformance, HandsOutMemoryOnlyInTheDeviceTier) {
  for (const auto& [unit, shard] : contents_) {
    const std::byte* resident = store_->resident(unit);
    ASSERT_EQ(resident != nullptr, store_->tier() == Tier::kDevice);
    if (resident == nullptr) continue;
    EXPECT_EQ(std::memcmp(resident, shard.data(), shard.size()), 0) << "unit " << unit;
  }
}

TEST_P(ShardStoreConformance, RefusesAUnitThatItDoesNotHold) {
  const Destination dst = destination(0);
  EXPECT_THROW(
      {
        store_->start_read(1);
        store_->finish_read(1, dst.data(), *copies_);
      },
      Error);
}

TEST_P(ShardStoreConformance, EndsWithReadsUnderWay) {
  for (const auto& [unit, shard] : contents_) store_->start_read(unit);
  const Destination dst = destination(contents_.begin()->first);
  store_->finish_read(contents_.begin()->first, dst.data(), *copies_);
  copies_->synchronize();
  store_.reset();
  expect_arrived(contents_.begin()->first, dst);
}

}  // namespace zi::test
