#include "text/result_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "base/system_error.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

IoError failed(const std::string& path, const char* what, int error) {
  return IoError(system_error_text(path, what, error));
}

/// Size of a regular file; -1 for a pipe, a terminal or a device, which cannot be cut.
off_t size_of_file(int fd, const std::string& path) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) throw failed(path, "fstat", errno);
  return S_ISREG(status.st_mode) ? status.st_size : -1;
}

/// Offset behind the last `\n`.
off_t end_of_last_whole_line(int fd, off_t size, const std::string& path) {
  std::array<char, 64 << 10> block;
  for (off_t end = size; end > 0;) {
    const off_t begin = std::max<off_t>(0, end - static_cast<off_t>(block.size()));
    const auto length = static_cast<std::size_t>(end - begin);
    const ssize_t got = ::pread(fd, block.data(), length, begin);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw failed(path, "reading its end failed", errno);
    if (static_cast<std::size_t>(got) != length) {
      throw IoError(
          fmt::format("{}: it shrinks while it is read (at byte {}); does another job "
                      "write it?",
                      path, begin + got));
    }
    const auto line_end = std::string_view(block.data(), length).rfind('\n');
    if (line_end != std::string_view::npos) return begin + static_cast<off_t>(line_end) + 1;
    end = begin;
  }
  return 0;
}

/// One job writes a file at a time: two would mix their lines, and both run every prompt.
void lock_file(int fd, const std::string& path) {
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return;
  throw IoError(path + ": another job is writing this file; give --output another one");
}

}  // namespace

ResultFile::ResultFile(const std::filesystem::path& path, bool append)
    : path_(path == "-" ? "standard output" : path.string()) {
  if (path == "-") {
    file_ = FileDescriptor(::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 0));
    if (!file_.is_open()) throw failed(path_, "cannot be written", errno);
    return;
  }
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    throw IoError(path_ + ": this is a directory; --output needs a file");
  }
  const int flags = (append ? O_RDWR : O_WRONLY) | O_APPEND | O_CREAT;
  FileDescriptor file(::open(path.c_str(), flags | O_CLOEXEC, 0666));
  if (file.get() < 0) throw failed(path_, "cannot be opened for writing", errno);
  const off_t size = size_of_file(file.get(), path_);
  if (size >= 0) lock_file(file.get(), path_);
  if (!append && size > 0 && ::ftruncate(file.get(), 0) != 0) {
    throw failed(path_, "ftruncate", errno);
  }
  if (append && size > 0) {
    const off_t end = end_of_last_whole_line(file.get(), size, path_);
    if (end < size) {
      if (::ftruncate(file.get(), end) != 0) throw failed(path_, "ftruncate", errno);
      log_warning(fmt::format("{}: the last line was not finished; its {} bytes are cut off", path_,
                              size - end));
    }
  }
  file_ = std::move(file);
}

ResultFile::~ResultFile() {
  // Network file systems report a full disk no sooner than here.
  if (file_.is_open() && file_.close() != 0) {
    log_error(fmt::format("{}: closing failed, its last lines may be lost: {}", path_,
                          system_message(errno)));
  }
}

void ResultFile::write(const Result& result) {
  const std::string line = result.to_json() + '\n';
  std::size_t written = 0;
  while (written < line.size()) {
    const ssize_t count = ::write(file_.get(), line.data() + written, line.size() - written);
    if (count >= 0) {
      written += static_cast<std::size_t>(count);
      continue;
    }
    const int error = errno;
    if (error == EINTR) continue;
    if (error == EAGAIN) {  // standard output may be a non-blocking pipe
      pollfd wait{file_.get(), POLLOUT, 0};
      ::poll(&wait, 1, -1);
      continue;
    }
    // Half a line would spoil the file for readers; without success the next --resume cuts it off.
    const off_t size = written > 0 ? size_of_file(file_.get(), path_) : -1;
    if (size >= static_cast<off_t>(written)) {
      [[maybe_unused]] const int cut = ::ftruncate(file_.get(), size - static_cast<off_t>(written));
    }
    throw failed(path_, "writing a result failed", error);
  }
}

}  // namespace zi
