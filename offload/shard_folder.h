#pragma once

#include <sys/stat.h>

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/file_descriptor.h"

namespace zi {

/// What to do about a place that cannot be used: the end of a message.
inline constexpr std::string_view kOtherDirectory =
    "choose another directory with --nvme-offload-path";

/// The access that shard files are made with: this user alone.
inline constexpr mode_t kShardFileMode = 0600;

/// Throws IoError where the directory that was given for shard files is missing and so is the one
/// above it: in what is misspelt, shards would land on another disk. Also where it is no folder.
void check_shard_directory(const std::filesystem::path& directory);

/// A folder that this user alone may change, held open: whatever its path leads to later, its files
/// are looked up in the folder that was checked. Disks are shared, and whoever can write into the
/// folder, or owns it, can put other weights in. The directory around it may belong to anyone, as
/// /tmp does: at worst its owner takes the folder away.
///
/// Each function throws IoError, which says what to do, for a folder or file that is of another
/// kind (symbolic links are not followed, a FIFO is not waited for), belongs to neither this user
/// nor root, or can be written by others. What others can only read (as earlier versions made it)
/// becomes private.
class ShardFolder {
 public:
  /// Nothing when it is not there.
  static std::optional<ShardFolder> find(const std::filesystem::path& path);
  /// The same; makes it where it is missing, and the directory around it (see
  /// check_shard_directory), for this user alone whatever the umask is.
  static ShardFolder make(const std::filesystem::path& path);

  const std::string& path() const { return path_; }
  /// For messages.
  std::string path_of(std::string_view name) const;
  int fd() const { return folder_.get(); }

  /// What to say where everybody can take this folder away or put another one in its place, because
  /// its directory can be written by all and is not sticky; empty else. (A folder of another user's
  /// is refused, but the shard files can be lost.)
  std::string warning_of_directory() const;

  /// A file in it, open for reading; nothing when it is not there.
  std::optional<FileDescriptor> open(const std::string& name) const;

  /// The lock file of this name, made where it is missing, locked as long as the descriptor is
  /// open; nothing when somebody else holds it. The file stays: removing it would let two writers
  /// hold locks on two files of one name.
  std::optional<FileDescriptor> lock(const std::string& name) const;

 private:
  ShardFolder(FileDescriptor folder, std::string path)
      : folder_(std::move(folder)), path_(std::move(path)) {}

  FileDescriptor folder_;
  std::string path_;
};

/// Gives a file that was just made to this user alone (0600), whatever umask and access lists made
/// of it. Throws IoError where the file system does not keep permissions.
void make_private(int fd, const std::string& path);

}  // namespace zi
