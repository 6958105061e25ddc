#include "convert/new_directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "base/system_error.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

namespace fs = std::filesystem;

/// A file that says whose directory it is, as long as it is written.
constexpr const char* kMark = ".zero-infer-writes-here";

void sync_directory(const fs::path& path) {
  const FileDescriptor directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // Some network file systems know no fsync of a folder.
  if (!directory.is_open() || (::fsync(directory.get()) != 0 && errno != EINVAL)) {
    throw IoError(system_error_text(path.string(), "cannot flush the folder to the disk", errno));
  }
}

void refuse_what_is_there(const fs::path& path) {
  std::error_code code;
  const fs::file_status status = fs::symlink_status(path, code);
  if (status.type() == fs::file_type::not_found) return;
  if (status.type() == fs::file_type::directory && fs::is_empty(path, code) && !code) return;
  throw ConfigError(fmt::format("--output {} is there and not an empty directory; give another one",
                                path.string()));
}

}  // namespace

NewDirectory::NewDirectory(const fs::path& path, std::string full_disk)
    : path_(fs::absolute(path).lexically_normal()), full_disk_(std::move(full_disk)) {
  if (!path_.has_filename()) path_ = path_.parent_path();
  refuse_what_is_there(path_);
  partial_ = path_;
  partial_ += ".partial";
  take();
}

NewDirectory::~NewDirectory() { remove(); }

/// The lock is that of the open directory: it ends with its writer, however that ends.
void NewDirectory::take() {
  if (::mkdir(partial_.c_str(), 0777) != 0 && errno != EEXIST) {
    fail("", "cannot be made", errno);
  }
  lock_ = FileDescriptor(::open(partial_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!lock_.is_open()) fail("", "cannot be opened", errno);
  const bool locked = ::flock(lock_.get(), LOCK_EX | LOCK_NB) == 0;
  struct stat mine {
  }, now{};
  const bool same = locked && ::fstat(lock_.get(), &mine) == 0 &&
                    ::lstat(partial_.c_str(), &now) == 0 && mine.st_ino == now.st_ino &&
                    mine.st_dev == now.st_dev;
  if (!same) {
    throw IoError(
        fmt::format("{} is being written by another process; wait for it, or give "
                    "another --output",
                    partial_.string()));
  }
  remove_what_was_left();
  there_ = true;
  make(kMark, 0).close();
}

void NewDirectory::remove_what_was_left() const {
  std::error_code code;
  if (fs::is_empty(partial_, code) && !code) return;
  if (!code && !fs::exists(partial_ / kMark, code)) {
    throw ConfigError(
        fmt::format("{} is there, and no zero-infer has made it; remove it, or give "
                    "another --output",
                    partial_.string()));
  }
  for (fs::directory_iterator entry(partial_, code), end; !code && entry != end;
       entry.increment(code)) {
    // The mark goes last, so that an interrupted clean-up is continued.
    if (entry->path().filename() != kMark) fs::remove_all(entry->path(), code);
  }
  if (!code) fs::remove(partial_ / kMark, code);
  if (code) {
    throw IoError(fmt::format("{}: what a writer that was killed has left cannot be removed: {}",
                              partial_.string(), code.message()));
  }
  log_info(fmt::format("removed what a writer that was killed had left in {}", partial_.string()));
}

void NewDirectory::remove() {
  if (!there_) return;
  std::error_code code;
  fs::remove_all(partial_, code);
  there_ = false;
}

NewDirectory::File NewDirectory::make(const std::string& name, std::uint64_t bytes) const {
  File file(*this, name);
  int result = 0;
  do {
    result = bytes == 0 ? 0 : ::fallocate(file.file_.get(), 0, 0, static_cast<off_t>(bytes));
  } while (result != 0 && errno == EINTR);
  // Without reservation a full disk is found later, by a write.
  if (result != 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)) {
    fail(name, fmt::format("cannot reserve {} bytes", bytes), errno);
  }
  return file;
}

void NewDirectory::make_folder(const std::string& name) const {
  if (::mkdir((partial_ / name).c_str(), 0777) != 0) fail(name, "cannot be made", errno);
}

void NewDirectory::publish() {
  std::error_code code;
  fs::remove(partial_ / kMark, code);  // a failure is seen below, or does not matter
  sync_directory(partial_);
  // In place of an empty directory, too; not of one that was filled in the meantime.
  if (::rename(partial_.c_str(), path_.c_str()) != 0) {
    throw IoError(system_error_text(path_.string(), "cannot be given its name", errno));
  }
  there_ = false;
  sync_directory(path_.parent_path());
}

void NewDirectory::fail(const std::string& name, const std::string& what, int error) const {
  const fs::path path = name.empty() ? partial_ : partial_ / name;
  std::string text = system_error_text(path.string(), what, error);
  if (error == ENOSPC || error == EDQUOT) text += full_disk_;
  throw IoError(text);
}

NewDirectory::File::File(const NewDirectory& directory, std::string name)
    : directory_(directory), name_(std::move(name)) {
  const fs::path path = directory_.partial_ / name_;
  file_ = FileDescriptor(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (!file_.is_open()) directory_.fail(name_, "cannot be made", errno);
}

void NewDirectory::File::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(file_.get(), bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      directory_.fail(name_, fmt::format("cannot write {} bytes", bytes.size()),
                      written < 0 ? errno : ENOSPC);
    }
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void NewDirectory::File::write(std::string_view text) { write(std::as_bytes(std::span(text))); }

void NewDirectory::File::close() {
  if (::fsync(file_.get()) != 0) directory_.fail(name_, "cannot be flushed to the disk", errno);
  if (file_.close() != 0) directory_.fail(name_, "cannot be closed", errno);
}

}  // namespace zi
