#include <cstdint>

#include "offload/resident_stores.h"
#include "shard_store_conformance.h"

namespace zi::test {
namespace {

template <typename Store>
std::unique_ptr<ShardStore> make_resident(Device& device, const ShardContents& contents) {
  std::vector<int> units;
  std::vector<std::size_t> sizes;
  for (const auto& [unit, shard] : contents) {
    units.push_back(unit);
    sizes.push_back(shard.size());
  }
  auto store = std::make_unique<Store>(device, units, sizes);
  for (const auto& [unit, shard] : contents) {
    std::memcpy(store->shard(unit).data(), shard.data(), shard.size());
  }
  return store;
}

INSTANTIATE_TEST_SUITE_P(Resident, ShardStoreConformance,
                         testing::Values(StoreCase{"device", make_resident<DeviceStore>},
                                         StoreCase{"host", make_resident<HostStore>}),
                         store_case_name);

template <typename Store>
class ResidentStore : public testing::Test {
 protected:
  std::unique_ptr<Device> device = make_cpu_device();
};
using Stores = testing::Types<DeviceStore, HostStore>;
TYPED_TEST_SUITE(ResidentStore, Stores);

TYPED_TEST(ResidentStore, LaysShardsApartAtPageStarts) {
  const TypeParam store(*this->device, {2, 0, 1}, {4096, 100, 8192});
  EXPECT_EQ(store.shard(2).size(), 4096u);
  EXPECT_EQ(store.shard(0).size(), 100u);
  EXPECT_EQ(store.shard(1).size(), 8192u);
  for (int unit : {0, 1, 2}) {
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(store.shard(unit).data()) % kPageBytes, 0u);
  }
  const auto apart = [&](int a, int b) {
    const std::span<std::byte> x = store.shard(a), y = store.shard(b);
    return x.data() + x.size() <= y.data() || y.data() + y.size() <= x.data();
  };
  EXPECT_TRUE(apart(0, 1) && apart(0, 2) && apart(1, 2));
}

TYPED_TEST(ResidentStore, MayBeEmpty) {
  const TypeParam store(*this->device, {}, {});
  EXPECT_THROW(store.shard(0), Error);
}

TYPED_TEST(ResidentStore, RefusesUnitsTwiceAndSizesThatDoNotMatch) {
  EXPECT_THROW(TypeParam(*this->device, {1, 1}, {4096, 4096}), Error);
  EXPECT_THROW(TypeParam(*this->device, {1, 2}, {4096}), Error);
}

TYPED_TEST(ResidentStore, NamesTierAndUnitOfAShardThatIsElsewhere) {
  const TypeParam store(*this->device, {1}, {4096});
  try {
    store.shard(7);
    FAIL() << "no exception";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("unit 7"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find(name_of(store.tier())), std::string::npos) << e.what();
  }
}

TEST(HostStore, TellsWhoeverWaitsThatMemoryWasRefused) {
  const auto device = make_cpu_device();
  const HostStore store(*device, {3, 4}, {4096, std::size_t{1} << 60});
  EXPECT_THROW(store.shard(4), ConfigError);
}

}  // namespace
}  // namespace zi::test
