#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "zero_infer/weight_format.h"

namespace zi {

/// One read, and one checksum: the extents of a shard file unless told otherwise.
inline constexpr std::size_t kShardExtentBytes = std::size_t{4} << 20;
/// Sizes of an extent that a shard file may have: multiples of 4096 up to this.
inline constexpr std::size_t kMostExtentBytes = std::size_t{32} << 20;

/// What to do about a shard file that cannot be used: the end of a message.
inline constexpr std::string_view kWrittenAgain = "remove it, and the next start writes it again";

/// What a shard file must have been written for; its header holds all of it.
struct ShardFileKey {
  std::uint64_t model_identity = 0;
  std::string model_name;  // for the folder's name and messages
  int world = 1;
  int rank = 0;
  WeightFormat format;
};

/// A unit and the bytes of its shard.
struct ShardSize {
  int unit = 0;
  std::size_t bytes = 0;  // a multiple of 4096
};

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

// clang-format off
/// The header of a shard file. Numbers are unsigned and little-endian; U units, E extents in all, a
/// name of N bytes:
///
///     offset        bytes   what
///     0             8       "ZISHARD\n"
///     8             4       version of the format
///     12            4       byte order of the weights: 1 little, 2 big
///     16            8       bytes of the header, H
///     24            8       bytes of the file
///     32            8       bytes of an extent
///     40            8       identity of the model
///     48            4       world
///     52            4       rank
///     56            1       format of the weights: 0 element by element, 1 int8, 2 int4,
///                           3 float8
///     57            1       type of the elements: 0 float32, 1 float16, 2 bfloat16
///     58            1       type of the scales: the same, 3 float8
///     59            1       1 if there are zero points, else 0
///     60            4       columns of a group; 0: a row is one
///     64            4       U
///     68            8       E
///     76            4       N
///     80            N       name of the model
///     80 + N        20 U    for each unit:    4  its number
///                                             8  bytes of its shard
///                                             8  offset of its shard in the file
///     80 + N + 20 U  8 E    for each extent:  8  XXH3 of its bytes
///     ..            ..      zeros, up to H - 8
///     H - 8         8       XXH3 of all before
///
/// H is the smallest multiple of 4096 that holds this. The shards follow in the order of the table,
/// ascending by unit, without gaps. A unit's last extent may be shorter.
// clang-format on
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

/// Lays out a file for these shards, checksums still zero. Throws Error for sizes that are not
/// multiples of 4096, and for a unit that is there twice.
ShardHeader plan_shard_file(const ShardFileKey& key, std::size_t extent_bytes,
                            std::vector<ShardSize> shards);

/// Reads and checks the header of an open file: format, version, own checksum, each field, the
/// file's size. Nothing in it is trusted before it is checked. Throws IoError with what to do.
ShardHeader read_shard_header(int fd, const std::string& path);

/// Throws Error unless it is a multiple of 4096 between 4096 and kMostExtentBytes.
void check_extent_bytes(std::size_t extent_bytes);

/// XXH3, 64 bits.
std::uint64_t shard_checksum(std::span<const std::byte> bytes);

/// Throws IoError when the bytes of an extent are not those that were written.
void verify_extent(const ShardExtent& extent, int unit, std::span<const std::byte> bytes,
                   const std::string& path);

}  // namespace zi
