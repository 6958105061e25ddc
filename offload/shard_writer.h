#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <vector>

#include "offload/shard_header.h"
#include "offload/shard_reader.h"

namespace zi {

/// Makes sure that `directory` holds this rank's shard file with the shards of `units` (file and
/// folder named by the key: <directory>/<model>-<identity>-<dtype>-world<n>/rank-<r>.shard). An
/// existing file is reused after its header is checked (reads only the header); a damaged header or
/// a file of another key under this name throws IoError with what to do; one that lacks units is
/// written anew with all of its own and these. Writing: free space is checked and reserved first, a
/// second writer is refused (flock on <file>.lock), the file gets a temporary name, checksums per
/// extent, fsync, then rename; any failure removes it. `readers[i]` makes units[i]'s shard, from
/// several threads at once; memory used is a few extents. `progress` (may be empty) is told the
/// bytes of each extent as it is written, from any thread, one at a time; what it throws ends the
/// writing. Returns the path. Throws IoError (no space, read-only, locked, ...), Error for
/// arguments that make no file.
std::filesystem::path prepare_shard_file(const std::filesystem::path& directory,
                                         const ShardFileKey& key, const std::vector<int>& units,
                                         const std::vector<const ShardReader*>& readers,
                                         const std::function<void(std::size_t)>& progress,
                                         std::size_t extent_bytes = kShardExtentBytes);

}  // namespace zi
