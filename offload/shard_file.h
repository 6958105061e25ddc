#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "offload/nvme_store.h"

namespace zi {

/// Sizes of an extent that a shard file may have: multiples of 4096 up to this.
inline constexpr std::size_t kMostExtentBytes = std::size_t{32} << 20;

/// Where one unit's shard lies in the file.
struct ShardUnit {
  int unit = 0;
  std::size_t bytes = 0;         // a multiple of 4096
  std::uint64_t offset = 0;      // a multiple of 4096
  std::size_t first_extent = 0;  // index of its first checksum
};

/// A part of a unit's shard: one read, one checksum.
struct ShardExtent {
  std::uint64_t offset = 0;  // in the file
  std::size_t bytes = 0;
  std::uint64_t checksum = 0;
};

/// The header of a shard file. All numbers are little-endian:
///
///     8 bytes  "ZISHARD\n"         u32 version       u32 byte order of the weights (1 little, 2
///     big) u64 header bytes             u64 file bytes    u64 extent bytes u64 model identity u32
///     world         u32 rank        u32 dtype u32 units                    u64 extents       u32
///     name bytes, then the model's name per unit: u32 unit, u64 shard bytes, u64 file offset per
///     extent of all units: u64 XXH3 of its bytes zeros, and in the last 8 of the header bytes (a
///     multiple of 4096) the XXH3 of all before
///
/// The shards follow in the order of the table, ascending by unit, without gaps. A unit's last
/// extent may be shorter.
struct ShardHeader {
  ShardFileKey key;
  std::size_t extent_bytes = 0;
  std::size_t header_bytes = 0;
  std::uint64_t file_bytes = 0;
  std::vector<ShardUnit> units;
  std::vector<std::uint64_t> checksums;

  const ShardUnit* find(int unit) const;  // null when it is not there
  std::size_t extent_count(const ShardUnit& unit) const;
  ShardExtent extent(const ShardUnit& unit, std::size_t index) const;
  /// The header's bytes.
  std::vector<std::byte> encode() const;
};

/// Lays out a file for these (unit, shard bytes), checksums still zero. Throws Error for sizes that
/// are no multiples of 4096, and for a unit that stands there twice.
ShardHeader plan_shard_file(const ShardFileKey& key, std::size_t extent_bytes,
                            std::vector<std::pair<int, std::size_t>> units);

/// Reads and checks the header of an open file: format, version, own checksum, each field, the
/// file's size. Nothing in it is trusted before it is checked. Throws IoError with what to do.
ShardHeader read_shard_header(int fd, const std::string& path);

/// Throws IoError when the file was written for something else than this job.
void check_shard_key(const ShardHeader& header, const ShardFileKey& key, std::size_t extent_bytes,
                     const std::string& path);

/// Throws Error unless it is a multiple of 4096 between 4096 and kMostExtentBytes.
void check_extent_bytes(std::size_t extent_bytes);

/// <directory>/<model>-<identity>-<dtype>-world<n>/rank-<r>.shard
std::filesystem::path shard_file_path(const std::filesystem::path& directory,
                                      const ShardFileKey& key);

/// XXH3, 64 bits.
std::uint64_t shard_checksum(std::span<const std::byte> bytes);

/// Throws IoError when the bytes of an extent are not those that were written.
void verify_extent(const ShardExtent& extent, int unit, std::span<const std::byte> bytes,
                   const std::string& path);

}  // namespace zi
