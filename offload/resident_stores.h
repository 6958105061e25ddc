#pragma once

#include <condition_variable>
#include <cstddef>
#include <exception>
#include <map>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "offload/shard_store.h"
#include "zero_infer/communicator.h"

namespace zi {

/// Shards in device memory, one buffer for all of them.
class DeviceStore final : public ShardStore {
 public:
  /// `units` and the bytes of their shards; the memory is Device::allocate_for_loading's. Fill it
  /// through `shard` before use.
  DeviceStore(Device& device, const std::vector<int>& units,
              const std::vector<std::size_t>& shard_bytes);
  Tier tier() const override { return Tier::kDevice; }
  void start_read(int) override {}
  void finish_read(int unit, std::byte* dst, Stream& copies) override;
  const std::byte* resident(int unit) const override;
  /// Device memory: to be filled by Device::copy.
  std::span<std::byte> shard(int unit) const;

 private:
  Device* device_;
  Buffer memory_;
  std::map<int, std::span<std::byte>> shards_;
};

/// Units of which every rank holds the shards of all ranks in its device memory: they are gathered
/// once, and no pass gathers them.
class ReplicatedStore final : public ShardStore {
 public:
  /// `units`, and the bytes of their shards. Fill each rank's own through `shard`, then `gather`.
  ReplicatedStore(Device& device, const std::vector<int>& units,
                  const std::vector<std::size_t>& shard_bytes, int rank, int world);
  Tier tier() const override { return Tier::kDevice; }
  void start_read(int) override {}
  void finish_read(int unit, std::byte* dst, Stream& copies) override;
  const std::byte* resident(int unit) const override;
  const std::byte* replicated(int unit) const override;
  /// This rank's, in its place among the others.
  std::span<std::byte> shard(int unit) const;
  /// Collective: enqueues the gathers of all units.
  void gather(Communicator& communicator, Stream& gathers);

 private:
  Device* device_;
  std::size_t rank_;
  Buffer memory_;
  struct Unit {
    std::byte* data;
    std::size_t shard_bytes;
  };
  std::map<int, Unit> units_;
};

/// Shards in pinned host memory, a buffer each. Pinning is slow: a few threads do it side by side,
/// in the order of the units, while the caller fills those that are there.
class HostStore final : public ShardStore {
 public:
  /// Begins to take the memory.
  HostStore(Device& device, const std::vector<int>& units,
            const std::vector<std::size_t>& shard_bytes);
  /// Waits for the threads; memory that they have not begun to take is not taken.
  ~HostStore() override;
  Tier tier() const override { return Tier::kHost; }
  void start_read(int) override {}
  void finish_read(int unit, std::byte* dst, Stream& copies) override;
  const std::byte* resident(int) const override { return nullptr; }
  const std::byte* on_host(int unit) const override { return shard(unit).data(); }
  /// Waits until the unit's memory is there; rethrows the first failure to take any.
  std::span<std::byte> shard(int unit) const;

 private:
  void take(const std::vector<std::size_t>& shard_bytes);

  Device* device_;
  std::map<int, std::size_t> index_;  // of each unit in the memory
  std::vector<Buffer> memory_;
  mutable std::mutex mutex_;  // guards the next three, and who may look at memory_
  mutable std::condition_variable changed_;
  std::vector<bool> there_;
  std::exception_ptr failure_;
  std::size_t next_ = 0;
  std::vector<std::jthread> threads_;
};

}  // namespace zi
