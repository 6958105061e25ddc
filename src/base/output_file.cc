#include "base/output_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <thread>
#include <utility>

#include "base/file_identity.h"
#include "base/system_error.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kLockInterval{10};
/// A lock that is held for longer than this is worth a line.
constexpr std::chrono::milliseconds kSilentWait{500};

}  // namespace

OutputFile::OutputFile(const std::filesystem::path& path, std::string flag, Mode mode,
                       std::chrono::milliseconds patience)
    : name_(path == "-" ? "standard output" : path.string()),
      flag_(std::move(flag)),
      replaces_(mode == Mode::kReplace && path != "-") {
  if (path == "-") {
    file_ = FileDescriptor(::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 0));
    if (!file_.is_open()) fail("cannot be written", errno);
    return;
  }
  do {
    open(path, mode);
  } while (size() >= 0 && !lock(path, patience));
  had_name_ = size() >= 0 && has_name();
}

OutputFile::~OutputFile() {
  if (!file_.is_open()) return;
  struct stat status {};
  if (!made_.empty() && ::fstat(file_.get(), &status) == 0 && status.st_size == 0 &&
      identity_of(made_) == identity_of(file_.get())) {
    ::unlink(made_.c_str());
  }
  if (begun_ && had_name_ && !has_name()) {
    log_error(
        fmt::format("{}: {} was removed while it was written: all of it is lost", name_, flag_));
  }
  // Network file systems may report a full disk only here.
  if (file_.close() != 0) {
    log_error(system_error_text(name_, "closing failed, its last lines may be lost", errno));
  }
}

void OutputFile::open(const std::filesystem::path& path, Mode mode) {
  // O_NONBLOCK: a FIFO that nobody reads must not hold the job up; it changes nothing for files.
  const int flags =
      (mode == Mode::kAppend ? O_RDWR : O_WRONLY) | O_APPEND | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  std::error_code ignored;
  made_.clear();
  if (std::filesystem::is_directory(path, ignored)) fail("cannot be written", EISDIR);
  file_ = FileDescriptor(::open(path.c_str(), flags));
  if (!file_.is_open() && errno == ENOENT) {
    file_ = FileDescriptor(::open(path.c_str(), flags | O_CREAT, 0666));
    if (file_.is_open()) made_ = std::filesystem::canonical(path, ignored);
  }
  if (!file_.is_open() && errno == ENXIO) {
    throw IoError(fmt::format(
        "{}: {} cannot be written: nothing reads this FIFO; start its reader first", name_, flag_));
  }
  if (!file_.is_open()) fail("cannot be written", errno);
  if (mode == Mode::kAppend && size() < 0) {
    throw IoError(fmt::format("{}: --resume needs a regular file as {}", name_, flag_));
  }
}

bool OutputFile::lock(const std::filesystem::path& path, std::chrono::milliseconds patience) {
  const auto start = Clock::now();
  bool told = false;
  while (::flock(file_.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) {
      log_warning(fmt::format("{} cannot be locked ({}): make sure that no other job writes it",
                              name_, system_message(errno)));
      return true;
    }
    const auto waited = Clock::now() - start;
    if (waited > patience) {
      throw IoError(fmt::format(
          "{}: another job is writing this file, and still was after {:.1f} s; wait for its end or "
          "end it, or give {} another file",
          name_, std::chrono::duration<double>(patience).count(), flag_));
    }
    if (waited > kSilentWait && !std::exchange(told, true)) {
      log_info(fmt::format("{}: another job is writing this file; waiting for its end", name_));
    }
    std::this_thread::sleep_for(kLockInterval);
  }
  // Whoever held the lock may have removed or replaced the file: two jobs would each hold a lock.
  return identity_of(path) == identity_of(file_.get());
}

void OutputFile::write(std::string_view text) {
  if (had_name_ && !has_name()) {
    begun_ = false;  // one message is enough
    throw IoError(fmt::format(
        "{}: {} was removed while it was written: what it held is lost; leave the file and its "
        "folder where they are until the job ends",
        name_, flag_));
  }
  if (!begun_ && replaces_) drop_content(text.size());
  begun_ = true;
  keep();
  std::size_t written = 0;
  while (written < text.size()) {
    const ssize_t count = ::write(file_.get(), text.data() + written, text.size() - written);
    if (count >= 0) {
      written += static_cast<std::size_t>(count);
      continue;
    }
    const int error = errno;
    if (error == EINTR) continue;
    if (error == EAGAIN) {  // a pipe whose reader is slow
      pollfd wait{file_.get(), POLLOUT, 0};
      ::poll(&wait, 1, -1);
      continue;
    }
    // Half a line would spoil the file for readers; if that fails, the next --resume cuts it off.
    const off_t end = written > 0 ? size() : -1;
    if (end >= static_cast<off_t>(written)) {
      [[maybe_unused]] const int cut = ::ftruncate(file_.get(), end - static_cast<off_t>(written));
    }
    fail("cannot be written", error);
  }
}

/// If the disk has no room for the new contents, the old ones must not be lost.
void OutputFile::drop_content(std::size_t bytes_to_come) {
  const off_t there = size();
  if (there <= 0) return;
  const auto wanted = static_cast<off_t>(bytes_to_come);
  if (wanted > there && ::fallocate(file_.get(), FALLOC_FL_KEEP_SIZE, there, wanted - there) != 0 &&
      errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR) {
    fail("cannot be written", errno);
  }
  cut(0);
}

FileDescriptor OutputFile::open_for_reading() const {
  FileDescriptor reader(::fcntl(file_.get(), F_DUPFD_CLOEXEC, 0));
  if (!reader.is_open() || ::lseek(reader.get(), 0, SEEK_SET) != 0) fail("cannot be read", errno);
  return reader;
}

off_t OutputFile::size() const {
  struct stat status {};
  if (::fstat(file_.get(), &status) != 0) fail("fstat", errno);
  return S_ISREG(status.st_mode) ? status.st_size : -1;
}

bool OutputFile::has_name() const {
  struct stat status {};
  return ::fstat(file_.get(), &status) == 0 && status.st_nlink > 0;
}

void OutputFile::cut(off_t size) {
  if (::ftruncate(file_.get(), size) != 0) fail("ftruncate", errno);
}

void OutputFile::fail(const char* what, int error) const {
  throw IoError(system_error_text(name_, fmt::format("{} {}", flag_, what), error));
}

}  // namespace zi
