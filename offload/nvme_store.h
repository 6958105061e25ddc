#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "offload/shard_header.h"
#include "offload/shard_store.h"

namespace zi {

/// How one rank reads its shard file.
struct NvmeOptions {
  std::size_t extent_bytes = kShardExtentBytes;  // as the file was written
  int depth = 16;                                // reads in flight
  bool allow_io_uring = true;                    // tests turn both off to take the other path
  bool allow_direct = true;
  int spare = 4;  // further extents, for those being checked and copied

  /// Extents that the staging has room for.
  std::size_t slots() const { return static_cast<std::size_t>(depth + spare); }
};

/// Shards on NVMe: io_uring with O_DIRECT and registered buffers into pinned staging, `depth`
/// extents in flight, then device copies; every extent's checksum is compared before its unit is
/// handed on. Where the kernel refuses io_uring or the file system O_DIRECT, pread or buffered
/// reads take over and one line says so. The reads that were started form a queue, in which a unit
/// may be more than once (for the next pass). The unit given to finish_read must be the first of
/// the queue; if the queue is empty, finish_read starts the read itself. A failed read fails the
/// store: every later call throws the same. One thread makes, calls and destroys it; the destructor
/// waits for reads and copies in flight.
class NvmeStore final : public ShardStore {
 public:
  /// `shards`: the units that it is to serve, each with the bytes that a unit's `dst` has room for.
  /// Throws IoError for a file that is not there, is damaged, was written for another key, lacks
  /// one of them or holds it in another size, or can be changed by others.
  NvmeStore(Device& device, const std::filesystem::path& shard_file, const ShardFileKey& key,
            std::span<const ShardSize> shards, const NvmeOptions& options);
  ~NvmeStore() override;

  Tier tier() const override { return Tier::kNvme; }
  void start_read(int unit) override;
  void finish_read(int unit, std::byte* dst, Stream& copies) override;
  ReadTimes last_read() const override;
  const std::byte* resident(int) const override { return nullptr; }

  /// `io_uring + O_DIRECT`, `pread + O_DIRECT`, ...: what is really used.
  std::string method() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Bytes per second of a bare read of this rank's units in the shard file with the same options: no
/// checksums, no copies. For limits. Reads at most `bytes` (whole extents, wrapping around).
double measure_bare_read(Device& device, const std::filesystem::path& shard_file,
                         const NvmeOptions& options, std::size_t bytes);

}  // namespace zi
