#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/file_descriptor.h"
#include "offload/shard_folder.h"
#include "offload/shard_header.h"

namespace zi {

/// <directory>/<model>-<identity>-<dtype>-world<n>/rank-<r>.shard
std::filesystem::path shard_file_path(const std::filesystem::path& directory,
                                      const ShardFileKey& key);

/// A shard file, open for reading. What its header says of it is true of its size; whether it is
/// what a job needs is for the checks below.
struct OpenShardFile {
  FileDescriptor file;
  std::string path;  // for messages
  ShardHeader header;

  /// Nothing when it is not there. Throws IoError for a damaged header, and as ShardFolder for a
  /// file that others may have changed.
  static std::optional<OpenShardFile> find(const ShardFolder& folder, const std::string& name);
  /// The file at `path`, whose folder is checked too. Throws IoError, also when it is not there.
  static OpenShardFile open(const std::filesystem::path& path);

  /// Throws IoError when the file was not written for this job.
  void check_key(const ShardFileKey& key, std::size_t extent_bytes) const;

  /// Whether each of these units is in the file. Throws IoError when one of them has another size
  /// there: nothing of that size may be copied to where the job has room for its own.
  bool holds(std::span<const ShardSize> shards) const;
};

/// A folder of shard files that were written for other weights of the same model's name, another
/// dtype or another number of ranks.
struct OtherShards {
  std::string folder;                  // its name in the directory
  std::optional<std::uint64_t> bytes;  // on the disk; nothing when it cannot be read
  bool other_times = false;            // alone, as far as samples of the weights tell
};

/// What else is in the directory for the same model's name, next to the folder of `key`; the
/// largest first.
std::vector<OtherShards> other_shards(const std::filesystem::path& directory,
                                      const ShardFileKey& key);

/// One line that names them and says what to do with them; empty when there are none.
std::string other_shards_text(const std::filesystem::path& directory, const ShardFileKey& key);

}  // namespace zi
