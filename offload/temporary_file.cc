#include "offload/temporary_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <utility>

#include "base/system_error.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

std::string temporary_name(const std::string& name) { return name + ".tmp"; }

/// Under the lock of `name`: whatever has its temporary name has no living writer.
void remove_under_lock(const ShardFolder& folder, const std::string& name) {
  const std::string left = temporary_name(name);
  struct stat info {};
  if (::fstatat(folder.fd(), left.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) return;
  if (::unlinkat(folder.fd(), left.c_str(), 0) != 0) {
    throw IoError(system_error_text(folder.path_of(left),
                                    "cannot remove what a writer that was killed has left", errno));
  }
  log_info(fmt::format("removed {} ({}), which a writer that was killed had left",
                       folder.path_of(left), format_bytes(static_cast<double>(info.st_size))));
}

/// The errors of a file system that cannot make files without a name.
bool says_unsupported(int error) {
  return error == EOPNOTSUPP || error == EISDIR || error == EINVAL || error == ENOSYS;
}

}  // namespace

std::string lock_name(const std::string& name) { return name + ".lock"; }

void remove_left_behind(const ShardFolder& folder, const std::string& name) {
  struct stat info {};
  if (::fstatat(folder.fd(), temporary_name(name).c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) return;
  try {
    const std::optional<FileDescriptor> lock = folder.lock(lock_name(name));
    if (lock) remove_under_lock(folder, name);
  } catch (const IoError& failure) {
    log_warning(fmt::format("{}: {} stays and takes room; remove it", failure.what(),
                            folder.path_of(temporary_name(name))));
  }
}

TemporaryFile::TemporaryFile(const ShardFolder& folder, const std::string& name,
                             std::string full_disk)
    : folder_(folder),
      name_(name),
      temporary_name_(temporary_name(name)),
      path_(folder.path_of(name)),
      full_disk_(std::move(full_disk)) {
  remove_under_lock(folder_, name_);
  make();
  try {
    make_private(file_.get(), path_);
  } catch (...) {
    remove();
    throw;
  }
}

TemporaryFile::~TemporaryFile() { remove(); }

void TemporaryFile::remove() {
  if (named_) ::unlinkat(folder_.fd(), temporary_name_.c_str(), 0);
  named_ = false;
}

/// Without a name, if it can be given one later: that is tried with a file of no size, because a
/// refusal after hours of writing would lose all of it.
void TemporaryFile::make() {
  if (const int refusal = make_without_name(); refusal != 0) {
    log_info(
        fmt::format("{}: a file without a name cannot be used there ({}): a job that is "
                    "killed while it writes leaves {}, which the next start removes",
                    folder_.path(), system_message(refusal), temporary_name_));
    file_ = FileDescriptor(::openat(folder_.fd(), temporary_name_.c_str(),
                                    O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                                    kShardFileMode));
    if (!file_.is_open()) fail("cannot make the shard file", errno);
    named_ = true;
  }
}

/// 0, or why the file system does not do it.
int TemporaryFile::make_without_name() {
  int refusal = 0;
  const auto open = [&] {
    FileDescriptor file(
        ::openat(folder_.fd(), ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, kShardFileMode));
    if (!file.is_open()) refusal = errno;
    return file;
  };
  if (const FileDescriptor trial = open(); trial.is_open()) {
    refusal = link_as(temporary_name_, trial.get());
    if (refusal != 0) return refusal;
    if (::unlinkat(folder_.fd(), temporary_name_.c_str(), 0) != 0) {
      fail("cannot remove a link to it", errno);
    }
    file_ = open();
  }
  if (refusal != 0 && !says_unsupported(refusal)) fail("cannot make the shard file", refusal);
  return refusal;
}

int TemporaryFile::link_as(const std::string& name, int fd) const {
  const std::string file = fmt::format("/proc/self/fd/{}", fd);
  const int result =
      ::linkat(AT_FDCWD, file.c_str(), folder_.fd(), name.c_str(), AT_SYMLINK_FOLLOW);
  return result == 0 ? 0 : errno;
}

void TemporaryFile::reserve(std::uint64_t bytes) {
  int result = 0;
  do {
    result = ::fallocate(file_.get(), 0, 0, static_cast<off_t>(bytes));
  } while (result != 0 && errno == EINTR);
  // Without reservation a full disk is found later, by a write.
  if (result != 0 && errno != EOPNOTSUPP && errno != ENOSYS) {
    fail(fmt::format("cannot reserve {}", format_memory(static_cast<double>(bytes))), errno);
  }
  const int flags = ::fcntl(file_.get(), F_GETFL);
  direct_ = flags >= 0 && ::fcntl(file_.get(), F_SETFL, flags | O_DIRECT) == 0;
  if (!direct_) log_warning("O_DIRECT is refused for " + path_ + "; buffered writes are used");
}

void TemporaryFile::write(std::uint64_t offset, std::span<const std::byte> bytes) {
  std::size_t done = 0;
  const auto fail_write = [&](int error) {
    fail(fmt::format("cannot write {} bytes at offset {}", bytes.size() - done, offset + done),
         error);
  };
  while (done < bytes.size()) {
    const bool was_direct = direct_;  // another thread may turn O_DIRECT off at any time
    const ssize_t result = ::pwrite(file_.get(), bytes.data() + done, bytes.size() - done,
                                    static_cast<off_t>(offset + done));
    if (result > 0) {
      done += static_cast<std::size_t>(result);
      // A direct write continues at a whole block: a part of one is written again.
      if (was_direct && done < bytes.size()) done = done / kPageBytes * kPageBytes;
    } else if (result == 0) {
      fail_write(ENOSPC);
    } else if (errno == EINVAL && was_direct) {
      stop_direct();  // some file systems take the flag and refuse the write
    } else if (errno != EINTR && errno != EAGAIN) {
      fail_write(errno);
    }
  }
}

void TemporaryFile::stop_direct() {
  const std::lock_guard lock(mutex_);
  if (!direct_) return;  // another thread was faster
  const int flags = ::fcntl(file_.get(), F_GETFL);
  if (flags < 0 || ::fcntl(file_.get(), F_SETFL, flags & ~O_DIRECT) != 0) {
    fail("cannot turn O_DIRECT off", errno);
  }
  direct_ = false;
  log_warning("O_DIRECT writes are refused for " + path_ + "; buffered writes are used");
}

void TemporaryFile::publish() {
  if (::fsync(file_.get()) != 0) fail("cannot flush the shard file to the disk", errno);
  give_name();
  if (file_.close() != 0) fail("cannot close the shard file", errno);
  // Some network file systems know no fsync of a folder.
  if (::fsync(folder_.fd()) != 0 && errno != EINVAL) {
    throw IoError(system_error_text(folder_.path(), "cannot flush the folder to the disk", errno));
  }
}

/// A link cannot take the place of a file, a rename can. A writer that is killed between the two
/// leaves both files, and the next start removes the one that did not get its name.
void TemporaryFile::give_name() {
  if (!named_) {
    int refusal = link_as(name_, file_.get());
    if (refusal == 0) return;
    if (refusal == EEXIST) refusal = link_as(temporary_name_, file_.get());
    if (refusal != 0) fail("cannot give the shard file its name", refusal);
    named_ = true;
  }
  if (::renameat(folder_.fd(), temporary_name_.c_str(), folder_.fd(), name_.c_str()) != 0) {
    fail("cannot rename " + temporary_name_ + " to it", errno);
  }
  named_ = false;
}

void TemporaryFile::fail(const std::string& what, int error) const {
  std::string text = system_error_text(path_, what, error);
  if (error == ENOSPC || error == EDQUOT) text += full_disk_;
  throw IoError(text);
}

}  // namespace zi
