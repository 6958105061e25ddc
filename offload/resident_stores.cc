#include "offload/resident_stores.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// Threads that take and pin memory side by side.
constexpr std::size_t kPinningThreads = 8;

void check_sizes(const std::vector<int>& units, const std::vector<std::size_t>& shard_bytes) {
  if (units.size() != shard_bytes.size()) {
    throw Error(fmt::format("a store was given {} units but the sizes of {} shards", units.size(),
                            shard_bytes.size()));
  }
}

void add(std::map<int, std::span<std::byte>>& shards, int unit, std::span<std::byte> shard) {
  if (!shards.emplace(unit, shard).second) {
    throw Error(fmt::format("unit {} was given to a store twice", unit));
  }
}

/// A pinned buffer of each size; rethrows the first failure.
std::vector<Buffer> allocate_all(Device& device, const std::vector<std::size_t>& sizes) {
  std::vector<Buffer> buffers(sizes.size());
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  const auto work = [&] {
    for (std::size_t i = next++; i < sizes.size(); i = next++) {
      try {
        buffers[i] = device.allocate_pinned_or_plain(sizes[i]);
      } catch (...) {
        next = sizes.size();
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
      }
    }
  };
  {
    std::vector<std::jthread> helpers;
    const std::size_t wanted = std::min(kPinningThreads, sizes.size());
    for (std::size_t i = 1; i < wanted; ++i) helpers.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
  return buffers;
}

/// Half a millisecond of PCIe 5, and hundreds of times the cost of one more copy.
constexpr std::size_t kPieceBytes = std::size_t{32} << 20;

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
  check_sizes(units, shard_bytes);
  std::size_t total = 0;
  for (std::size_t bytes : shard_bytes) total += align_up(bytes, kPageBytes);
  if (total != 0) memory_ = device.allocate(total);
  std::size_t offset = 0;  // one after the other, each at a page's start
  for (std::size_t i = 0; i < units.size(); ++i) {
    add(shards_, units[i], memory_.span().subspan(offset, shard_bytes[i]));
    offset += align_up(shard_bytes[i], kPageBytes);
  }
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
  check_sizes(units, shard_bytes);
  memory_ = allocate_all(device, shard_bytes);
  for (std::size_t i = 0; i < units.size(); ++i) add(shards_, units[i], memory_[i].span());
}

void HostStore::finish_read(int unit, std::byte* dst, Stream& copies) {
  const std::span<std::byte> from = shard(unit);
  // In pieces: a pass's own small copies go between them, not behind all of a block of gigabytes.
  for (std::size_t at = 0; at < from.size(); at += kPieceBytes) {
    device_->copy(dst + at, from.data() + at, std::min(kPieceBytes, from.size() - at), copies);
  }
}

std::span<std::byte> HostStore::shard(int unit) const { return find(shards_, unit, tier()); }

}  // namespace zi
