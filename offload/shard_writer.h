#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "offload/shard_header.h"
#include "offload/shard_reader.h"

namespace zi {

/// What to do while another process writes the same file.
enum class OtherWriter {
  kRefuse,
  kWait,  // it is of this job as well: the file will be this process's too
};

/// Makes sure that `directory` holds this rank's shard file (shard_file_path) with the shards of
/// `units`.
///
/// An existing file is used after its header is checked, which is all that is read of it; one that
/// lacks units is written again, with its own units and these. A damaged header, a file of another
/// key under this name, a shard of another size and a file or folder that others can change
/// (ShardFolder) are refused.
///
/// Writing: a second writer is refused or waits (flock on <file>.lock), free space is checked and
/// reserved, every extent gets a checksum, and the file gets its name when all of it is on the disk
/// (TemporaryFile). Rank 0 says which other shard files of the model lie in the directory; a full
/// disk's message names them too.
///
/// `readers[i]` makes units[i]'s shard, from several threads at once; memory used is a few extents.
/// `progress` (may be empty) is told the bytes of each extent as it is written, from any thread,
/// one at a time; what it throws ends the writing. Returns the path. Throws IoError (no space,
/// read-only, locked, ...), Error for arguments that make no file.
std::filesystem::path prepare_shard_file(const std::filesystem::path& directory,
                                         const ShardFileKey& key, const std::vector<int>& units,
                                         const std::vector<const ShardReader*>& readers,
                                         const std::function<void(std::size_t)>& progress,
                                         std::size_t extent_bytes = kShardExtentBytes,
                                         OtherWriter other = OtherWriter::kRefuse);

/// Bytes of the file that prepare_shard_file would write for these shards; 0 where the one that is
/// there will do. Throws as it does for a file that is there and cannot be used. What a writer that
/// was killed has left is removed, as it does: only then is the free space what there is to fill.
std::uint64_t shard_bytes_to_write(const std::filesystem::path& directory, const ShardFileKey& key,
                                   const std::vector<ShardSize>& shards,
                                   std::size_t extent_bytes = kShardExtentBytes);

/// What a file system has left.
struct FreeSpace {
  std::uint64_t file_system = 0;  // its number on this host
  std::uint64_t bytes = 0;
};

/// Of the one that the directory for shard files is on, or will be made on. Throws IoError.
FreeSpace free_space(const std::filesystem::path& directory);

/// The end of a message about a disk without room. `others`: see other_shards_text.
std::string full_disk_text(const std::string& others);

}  // namespace zi
