#pragma once

#include <map>
#include <vector>

#include "offload/shard_store.h"

namespace zi {

/// Shards in device memory, one buffer for all of them.
class DeviceStore final : public ShardStore {
 public:
  /// `units` and the bytes of their shards; takes the memory. Fill it through `shard` before use.
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

/// Shards in pinned host memory, a buffer each, taken side by side: pinning is slow for one thread.
class HostStore final : public ShardStore {
 public:
  HostStore(Device& device, const std::vector<int>& units,
            const std::vector<std::size_t>& shard_bytes);
  Tier tier() const override { return Tier::kHost; }
  void start_read(int) override {}
  void finish_read(int unit, std::byte* dst, Stream& copies) override;
  const std::byte* resident(int) const override { return nullptr; }
  std::span<std::byte> shard(int unit) const;

 private:
  Device* device_;
  std::vector<Buffer> memory_;
  std::map<int, std::span<std::byte>> shards_;
};

}  // namespace zi
