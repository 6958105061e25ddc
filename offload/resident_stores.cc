#include "offload/resident_stores.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "offload/read_threads.h"
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

[[noreturn]] void throw_twice(int unit) {
  throw Error(fmt::format("unit {} was given to a store twice", unit));
}

template <typename Value>
const Value& find(const std::map<int, Value>& shards, int unit, Tier tier) {
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
  if (total != 0) memory_ = device.allocate_for_loading(total);
  std::size_t offset = 0;  // one after the other, each at a page's start
  for (std::size_t i = 0; i < units.size(); ++i) {
    const auto shard = memory_.span().subspan(offset, shard_bytes[i]);
    if (!shards_.emplace(units[i], shard).second) throw_twice(units[i]);
    offset += align_up(shard_bytes[i], kPageBytes);
  }
}

void DeviceStore::finish_read(int unit, std::byte* dst, Stream& copies) {
  const std::span<std::byte> from = shard(unit);
  device_->copy(dst, from.data(), from.size(), copies);
}

const std::byte* DeviceStore::resident(int unit) const { return shard(unit).data(); }

std::span<std::byte> DeviceStore::shard(int unit) const { return find(shards_, unit, tier()); }

ReplicatedStore::ReplicatedStore(Device& device, const std::vector<int>& units,
                                 const std::vector<std::size_t>& shard_bytes, int rank, int world)
    : device_(&device), rank_(static_cast<std::size_t>(rank)) {
  check_sizes(units, shard_bytes);
  const auto gathered = [world](std::size_t bytes) {
    return bytes * static_cast<std::size_t>(world);
  };
  std::size_t total = 0;
  for (std::size_t bytes : shard_bytes) total += align_up(gathered(bytes), kPageBytes);
  if (total != 0) memory_ = device.allocate_for_loading(total);
  std::byte* at = memory_.data();  // as in DeviceStore
  for (std::size_t i = 0; i < units.size(); ++i) {
    if (!units_.emplace(units[i], Unit{at, shard_bytes[i]}).second) throw_twice(units[i]);
    at += align_up(gathered(shard_bytes[i]), kPageBytes);
  }
}

void ReplicatedStore::finish_read(int unit, std::byte* dst, Stream& copies) {
  const std::span<std::byte> from = shard(unit);
  device_->copy(dst, from.data(), from.size(), copies);
}

const std::byte* ReplicatedStore::resident(int unit) const { return shard(unit).data(); }

const std::byte* ReplicatedStore::replicated(int unit) const {
  return find(units_, unit, tier()).data;
}

std::span<std::byte> ReplicatedStore::shard(int unit) const {
  const Unit& found = find(units_, unit, tier());
  return {found.data + rank_ * found.shard_bytes, found.shard_bytes};
}

void ReplicatedStore::gather(Communicator& communicator, Stream& gathers) {
  for (const auto& [number, unit] : units_) {
    communicator.all_gather(shard(number).data(), unit.data, unit.shard_bytes, gathers);
  }
}

HostStore::HostStore(Device& device, const std::vector<int>& units,
                     const std::vector<std::size_t>& shard_bytes)
    : device_(&device), memory_(units.size()), there_(units.size()) {
  check_sizes(units, shard_bytes);
  for (std::size_t i = 0; i < units.size(); ++i) {
    if (!index_.emplace(units[i], i).second) throw_twice(units[i]);
  }
  // At most half of the cores: whoever fills the memory needs some as well.
  const std::size_t cores = std::max(2u, std::thread::hardware_concurrency());
  const std::size_t wanted = std::min({kPinningThreads, cores / 2, units.size()});
  for (std::size_t i = 0; i < wanted; ++i) {
    threads_.emplace_back([this, shard_bytes] { take(shard_bytes); });
  }
}

HostStore::~HostStore() {
  {
    const std::lock_guard lock(mutex_);
    next_ = memory_.size();
  }
  threads_.clear();  // joins
}

void HostStore::take(const std::vector<std::size_t>& shard_bytes) {
  lower_priority();
  std::unique_lock lock(mutex_);
  while (next_ < memory_.size() && !failure_) {
    const std::size_t i = next_++;
    lock.unlock();
    Buffer buffer;
    std::exception_ptr failed;
    try {
      buffer = device_->allocate_pinned_or_plain(shard_bytes[i]);
    } catch (...) {
      failed = std::current_exception();
    }
    lock.lock();
    memory_[i] = std::move(buffer);
    there_[i] = !failed;
    if (failed && !failure_) failure_ = failed;
    changed_.notify_all();
  }
}

void HostStore::finish_read(int unit, std::byte* dst, Stream& copies) {
  const std::span<std::byte> from = shard(unit);
  device_->copy(dst, from.data(), from.size(), copies);
}

std::span<std::byte> HostStore::shard(int unit) const {
  const std::size_t i = find(index_, unit, tier());
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return there_[i] || failure_ != nullptr; });
  if (!there_[i]) std::rethrow_exception(failure_);
  return memory_[i].span();
}

}  // namespace zi
