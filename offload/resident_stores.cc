#include "offload/resident_stores.h"

#include <fmt/format.h>

#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

std::size_t total_bytes(const std::vector<int>& units,
                        const std::vector<std::size_t>& shard_bytes) {
  if (units.size() != shard_bytes.size()) {
    throw Error(fmt::format("a store was given {} units but the sizes of {} shards", units.size(),
                            shard_bytes.size()));
  }
  std::size_t total = 0;
  for (std::size_t bytes : shard_bytes) total += align_up(bytes, kPageBytes);
  return total;
}

/// One after the other, each at a page's start.
std::map<int, std::span<std::byte>> cut(const Buffer& memory, const std::vector<int>& units,
                                        const std::vector<std::size_t>& shard_bytes) {
  std::map<int, std::span<std::byte>> shards;
  std::size_t offset = 0;
  for (std::size_t i = 0; i < units.size(); ++i) {
    if (!shards.emplace(units[i], memory.span().subspan(offset, shard_bytes[i])).second) {
      throw Error(fmt::format("unit {} was given to a store twice", units[i]));
    }
    offset += align_up(shard_bytes[i], kPageBytes);
  }
  return shards;
}

std::span<std::byte> find(const std::map<int, std::span<std::byte>>& shards, int unit, Tier tier) {
  const auto found = shards.find(unit);
  if (found == shards.end()) {
    throw Error(fmt::format("unit {} does not rest in the {} tier", unit, name_of(tier)));
  }
  return found->second;
}

}  // namespace

DeviceStore::DeviceStore(Device& device, const std::vector<int>& units,
                         const std::vector<std::size_t>& shard_bytes)
    : device_(&device) {
  if (const std::size_t total = total_bytes(units, shard_bytes); total != 0) {
    memory_ = device.allocate(total);
  }
  shards_ = cut(memory_, units, shard_bytes);
}

void DeviceStore::finish_read(int unit, std::byte* dst, Stream& copies) {
  const std::span<std::byte> from = shard(unit);
  device_->copy(dst, from.data(), from.size(), copies);
}

const std::byte* DeviceStore::resident(int unit) const { return shard(unit).data(); }

std::span<std::byte> DeviceStore::shard(int unit) const { return find(shards_, unit, tier()); }

HostStore::HostStore(Device& device, const std::vector<int>& units,
                     const std::vector<std::size_t>& shard_bytes)
    : device_(&device) {
  if (const std::size_t total = total_bytes(units, shard_bytes); total != 0) {
    memory_ = device.allocate_pinned(total);
  }
  shards_ = cut(memory_, units, shard_bytes);
}

void HostStore::finish_read(int unit, std::byte* dst, Stream& copies) {
  const std::span<std::byte> from = shard(unit);
  device_->copy(dst, from.data(), from.size(), copies);
}

std::span<std::byte> HostStore::shard(int unit) const { return find(shards_, unit, tier()); }

}  // namespace zi
