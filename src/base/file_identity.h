#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace zi {

/// Which file a path leads to, whatever the path looks like: two paths with equal identities, be it
/// through `..`, symbolic links, hard links or bind mounts, are one file.
struct FileIdentity {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;  // of the file; of its folder when the file does not exist yet
  std::string new_name;     // in that folder; empty for a file that exists
  bool regular = false;     // neither a pipe nor a disk

  bool exists() const { return new_name.empty(); }
  bool operator==(const FileIdentity&) const = default;
};

/// Follows symbolic links, also one whose target does not exist yet. None for what keeps no data (a
/// terminal, /dev/null, a socket), and where no file can be: a folder on the way is missing. Any
/// thread.
std::optional<FileIdentity> identity_of(const std::filesystem::path& path);

/// Of an open file; none also for a descriptor that is closed.
std::optional<FileIdentity> identity_of(int fd);

}  // namespace zi
