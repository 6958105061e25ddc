#include "base/file_identity.h"

#include <sys/stat.h>

#include <system_error>

namespace zi {
namespace {

namespace fs = std::filesystem;

/// As many as Linux follows in one path.
constexpr int kMostLinks = 40;

std::optional<FileIdentity> identity_of(const struct stat& status) {
  if (S_ISCHR(status.st_mode) || S_ISSOCK(status.st_mode)) return std::nullopt;
  return FileIdentity{.device = status.st_dev,
                      .inode = status.st_ino,
                      .new_name = {},
                      .regular = S_ISREG(status.st_mode)};
}

/// Where a file that is opened with O_CREAT would be made: the end of a chain of symbolic links.
fs::path end_of_links(fs::path path) {
  std::error_code error;
  for (int i = 0; i < kMostLinks && fs::is_symlink(fs::symlink_status(path, error)); ++i) {
    const fs::path target = fs::read_symlink(path, error);
    if (error) break;
    path = path.parent_path() / target;  // the target alone where it is absolute
  }
  return path;
}

}  // namespace

std::optional<FileIdentity> identity_of(const fs::path& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) == 0) return identity_of(status);
  const fs::path made = end_of_links(path);
  const fs::path folder = made.parent_path().empty() ? fs::path(".") : made.parent_path();
  if (made.filename().empty() || ::stat(folder.c_str(), &status) != 0) return std::nullopt;
  return FileIdentity{.device = status.st_dev,
                      .inode = status.st_ino,
                      .new_name = made.filename().string(),
                      .regular = true};
}

std::optional<FileIdentity> identity_of(int fd) {
  struct stat status {};
  return ::fstat(fd, &status) == 0 ? identity_of(status) : std::nullopt;
}

}  // namespace zi
