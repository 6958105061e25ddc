#pragma once

#include <cstddef>
#include <filesystem>
#include <string>

#include "offload/shard_header.h"

namespace zi {

/// <directory>/<model>-<identity>-<dtype>-world<n>/rank-<r>.shard
std::filesystem::path shard_file_path(const std::filesystem::path& directory,
                                      const ShardFileKey& key);

/// Throws IoError when the file was written for something else than this job.
void check_shard_key(const ShardHeader& header, const ShardFileKey& key, std::size_t extent_bytes,
                     const std::string& path);

}  // namespace zi
