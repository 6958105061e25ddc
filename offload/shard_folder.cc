#include "offload/shard_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/system_error.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

constexpr mode_t kFolderMode = 0700;
constexpr mode_t kAccess = 0777;          // the bits of a mode that say who may do what
constexpr mode_t kWrittenByOthers = 022;  // an access list that lets others write sets one of them
constexpr int kOpenSafely = O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;

std::string_view kind_of(mode_t mode) {
  switch (mode & S_IFMT) {
    case S_IFDIR:
      return "a folder";
    case S_IFREG:
      return "a plain file";
    case S_IFLNK:
      return "a symbolic link";
    case S_IFIFO:
      return "a FIFO";
    case S_IFSOCK:
      return "a socket";
    default:
      return "a device";
  }
}

struct stat stat_of(int fd, const std::string& path) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) throw IoError(system_error_text(path, "cannot stat it", errno));
  return info;
}

/// `wanted`: S_IFDIR or S_IFREG.
void check_private(const struct stat& info, mode_t wanted, const std::string& path) {
  if ((info.st_mode & S_IFMT) != wanted) {
    throw IoError(fmt::format("{} is {}, {} is needed there; remove it or {}", path,
                              kind_of(info.st_mode), kind_of(wanted), kOtherDirectory));
  }
  if (info.st_uid != ::geteuid() && info.st_uid != 0) {
    throw IoError(fmt::format(
        "{} belongs to user {}, who could change the weights, and this job runs as user {}; "
        "remove it or {}",
        path, info.st_uid, ::geteuid(), kOtherDirectory));
  }
  if ((info.st_mode & kWrittenByOthers) != 0) {
    throw IoError(fmt::format(
        "{} can be written by others (mode {:04o}), who could have changed the weights; remove it, "
        "or, where you trust them, run: chmod -R go-w '{}'",
        path, info.st_mode & (kAccess | S_ISVTX), path));
  }
}

/// Works on an O_PATH descriptor, which fchmod does not take: there can be one for a folder that
/// may not be opened yet.
bool set_mode_of_place(int fd, mode_t mode) {
  return ::chmod(fmt::format("/proc/self/fd/{}", fd).c_str(), mode) == 0;
}

/// True: made. False: something is already there.
bool make_one_folder(const std::filesystem::path& path) {
  if (::mkdir(path.c_str(), kFolderMode) != 0) {
    if (errno == EEXIST) return false;
    throw IoError(system_error_text(path.string(), "cannot make a folder for shard files", errno) +
                  fmt::format("; {}", kOtherDirectory));
  }
  const FileDescriptor made(::open(path.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!made.is_open()) return true;  // whoever opens it says why
  struct stat info {};
  if (::fstat(made.get(), &info) != 0 || info.st_uid != ::geteuid()) return true;
  // The umask may have taken our own rights, and a parent with an access list given some away.
  if ((info.st_mode & kAccess) != kFolderMode) set_mode_of_place(made.get(), kFolderMode);
  info = stat_of(made.get(), path.string());
  if ((info.st_mode & kWrittenByOthers) != 0) {
    throw IoError(
        fmt::format("the file system of {} keeps no permissions: a folder made for this "
                    "user alone can be written by others (mode {:04o}); {}",
                    path.string(), info.st_mode & kAccess, kOtherDirectory));
  }
  return true;
}

}  // namespace

void check_shard_directory(const std::filesystem::path& directory) {
  struct stat info {};
  const auto is_there = [&](const std::filesystem::path& place) {
    if (::stat(place.c_str(), &info) == 0) return true;
    const int error = errno;
    if (error == ENOENT || error == ENOTDIR) return false;
    throw IoError(system_error_text("--nvme-offload-path " + directory.string(),
                                    "cannot examine " + place.string(), error) +
                  fmt::format("; {}", kOtherDirectory));
  };
  if (is_there(directory)) {
    if (S_ISDIR(info.st_mode)) return;
    throw IoError(fmt::format("--nvme-offload-path {} is {}, a folder is needed there; {}",
                              directory.string(), kind_of(info.st_mode), kOtherDirectory));
  }
  // `/a/b/` has no last part, and its parent is itself.
  const std::filesystem::path whole =
      directory.has_filename() ? directory : directory.parent_path();
  const std::filesystem::path parent =
      whole.has_parent_path() ? whole.parent_path() : std::filesystem::path(".");
  const bool there = is_there(parent);
  if (there && S_ISDIR(info.st_mode)) return;
  if (there) {
    throw IoError(fmt::format("--nvme-offload-path {}: {} is {}, a folder is needed there; {}",
                              directory.string(), parent.string(), kind_of(info.st_mode),
                              kOtherDirectory));
  }
  throw IoError(fmt::format(
      "--nvme-offload-path {}: there is no folder {}; make it, or correct the path (only "
      "its last part is made here)",
      directory.string(), parent.string()));
}

void make_private(int fd, const std::string& path) {
  if (::fchmod(fd, kShardFileMode) != 0) {
    throw IoError(system_error_text(path, "cannot make it private (chmod 0600)", errno) +
                  fmt::format("; {}", kOtherDirectory));
  }
  check_private(stat_of(fd, path), S_IFREG, path);
}

std::optional<ShardFolder> ShardFolder::find(const std::filesystem::path& path) {
  const std::string name = path.string();
  const FileDescriptor place(::open(path.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  if (!place.is_open()) {
    if (errno == ENOENT || errno == ENOTDIR) return std::nullopt;
    throw IoError(system_error_text(name, "cannot examine the folder of shard files", errno) +
                  fmt::format("; {}", kOtherDirectory));
  }
  const struct stat info = stat_of(place.get(), name);
  check_private(info, S_IFDIR, name);
  if (info.st_uid == ::geteuid() && (info.st_mode & kAccess & ~kFolderMode) != 0) {
    // May fail, for example on a disk mounted read-only: others still cannot change anything.
    set_mode_of_place(place.get(), info.st_mode & kFolderMode);
  }
  FileDescriptor folder(::openat(place.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder.is_open()) {
    throw IoError(system_error_text(name, "cannot open the folder of shard files", errno) +
                  fmt::format("; {}", kOtherDirectory));
  }
  return ShardFolder(std::move(folder), name);
}

ShardFolder ShardFolder::make(const std::filesystem::path& path) {
  const std::filesystem::path directory = path.parent_path();
  if (!directory.empty() && ::access(directory.c_str(), F_OK) != 0) {
    check_shard_directory(directory);
    make_one_folder(directory);
  }
  make_one_folder(path);
  std::optional<ShardFolder> folder = find(path);
  if (!folder) {
    throw IoError(fmt::format("{}: the folder was removed just now; start again, or {}",
                              path.string(), kOtherDirectory));
  }
  return std::move(*folder);
}

std::string ShardFolder::path_of(std::string_view name) const {
  return fmt::format("{}/{}", path_, name);
}

std::string ShardFolder::warning_of_directory() const {
  struct stat info {};
  if (::fstatat(fd(), "..", &info, 0) != 0) return {};
  if ((info.st_mode & S_IWOTH) == 0 || (info.st_mode & S_ISVTX) != 0) return {};
  const std::filesystem::path parent = std::filesystem::path(path_).parent_path();
  const std::string directory = parent.empty() ? "." : parent.string();
  return fmt::format(
      "{} can be written by everybody and is not sticky (mode {:04o}): other users can remove this "
      "job's shard files; run: chmod +t '{}', or {}",
      directory, info.st_mode & kAccess, directory, kOtherDirectory);
}

std::optional<FileDescriptor> ShardFolder::open(const std::string& name) const {
  const std::string path = path_of(name);
  struct stat info {};
  if (::fstatat(fd(), name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
    if (errno == ENOENT) return std::nullopt;
    throw IoError(system_error_text(path, "cannot examine the shard file", errno));
  }
  check_private(info, S_IFREG, path);  // before it is opened: a device may act on that
  FileDescriptor file(::openat(fd(), name.c_str(), O_RDONLY | kOpenSafely));
  if (!file.is_open()) {
    if (errno == ENOENT) return std::nullopt;
    throw IoError(system_error_text(path, "cannot open the shard file", errno));
  }
  info = stat_of(file.get(), path);
  check_private(info, S_IFREG, path);
  if (info.st_uid == ::geteuid() && (info.st_mode & kAccess & ~kShardFileMode) != 0) {
    static_cast<void>(::fchmod(file.get(), info.st_mode & kShardFileMode));  // may fail, as above
  }
  // io_uring would give up where it has to wait.
  if (::fcntl(file.get(), F_SETFL, 0) != 0) {
    throw IoError(system_error_text(path, "cannot set the flags of the shard file", errno));
  }
  return file;
}

std::optional<FileDescriptor> ShardFolder::lock(const std::string& name) const {
  const std::string path = path_of(name);
  struct stat info {};
  if (::fstatat(fd(), name.c_str(), &info, AT_SYMLINK_NOFOLLOW) == 0) {
    check_private(info, S_IFREG, path);
  }
  FileDescriptor file(::openat(fd(), name.c_str(), O_RDWR | O_CREAT | kOpenSafely, kShardFileMode));
  if (!file.is_open()) {
    throw IoError(system_error_text(path, "cannot write to the folder of shard files", errno) +
                  fmt::format("; {}", kOtherDirectory));
  }
  info = stat_of(file.get(), path);
  check_private(info, S_IFREG, path);
  if ((info.st_mode & kAccess) != kShardFileMode) make_private(file.get(), path);
  int result = 0;
  do {
    result = ::flock(file.get(), LOCK_EX | LOCK_NB);
  } while (result != 0 && errno == EINTR);
  if (result == 0) return file;
  if (errno == EWOULDBLOCK) return std::nullopt;
  throw IoError(system_error_text(path, "cannot lock it", errno) +
                "; use a local file system for --nvme-offload-path");
}

}  // namespace zi
