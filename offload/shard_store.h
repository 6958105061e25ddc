#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "zero_infer/device.h"

namespace zi {

/// Where a shard rests.
enum class Tier : std::uint8_t { kDevice, kHost, kNvme };

/// `device`, `host`, `nvme`.
constexpr std::string_view name_of(Tier tier) {
  switch (tier) {
    case Tier::kDevice:
      return "device";
    case Tier::kHost:
      return "host";
    case Tier::kNvme:
      return "nvme";
  }
  return "";
}

/// When a unit was read, on the host's clock; all 0 where nothing is read. The storage may have
/// delivered a part before the host took it.
struct ReadTimes {
  double begin = 0;  // its first part was asked for
  double taken = 0;  // the host had its first part
  double end = 0;    // the host had its last part
};

/// Holds this rank's shards of the units of one tier. A read has two halves: `start_read` asks the
/// storage, `finish_read` brings the bytes to the device. Reads finish in the order in which they
/// were started. One thread, the rank's main one, calls a store.
class ShardStore {
 public:
  virtual ~ShardStore() = default;

  virtual Tier tier() const = 0;

  /// Starts reading the unit's shard into staging memory as far as there is room, without waiting.
  /// No effect for stores that need none.
  virtual void start_read(int unit) = 0;

  /// Enqueues on `copies` whatever brings the shard to `dst` (shard_bytes, device memory); returns
  /// when all of it is enqueued. The NVMe store waits here for its reads. Throws IoError with path
  /// and offset for a failed read, a short file, a checksum that differs.
  virtual void finish_read(int unit, std::byte* dst, Stream& copies) = 0;

  /// The times of the read that finish_read finished last.
  virtual ReadTimes last_read() const { return {}; }

  /// The shard in device memory, when it rests there; else null.
  virtual const std::byte* resident(int unit) const = 0;

  /// The shards of all ranks in device memory, as a gather puts them into a slot, when they rest
  /// there; else null. This rank's is then what `resident` returns.
  virtual const std::byte* replicated(int) const { return nullptr; }

  /// The shard in host memory, when it rests there; else null. Any part of it may be copied from
  /// there, whether or not a read was started.
  virtual const std::byte* on_host(int) const { return nullptr; }
};

}  // namespace zi
