#include "text/line_reader.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "base/system_error.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

constexpr std::size_t kReadBytes = 256 << 10;

}  // namespace

FileDescriptor open_for_reading(const std::filesystem::path& path) {
  const bool standard_input = path == "-";
  const std::string name = standard_input ? "standard input" : path.string();
  // O_NONBLOCK: the open of a FIFO returns at once; reads are preceded by poll anyway.
  FileDescriptor file(standard_input
                          ? ::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0)
                          : ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (file.get() < 0) {
    throw IoError(fmt::format("{}: cannot be opened: {}", name, system_message(errno)));
  }
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) {
    throw IoError(fmt::format("{}: fstat: {}", name, system_message(errno)));
  }
  if (S_ISDIR(status.st_mode)) {
    throw IoError(fmt::format("{}: this is a directory; a file is needed", name));
  }
  return file;
}

LineReader::LineReader(FileDescriptor file, std::string name, std::size_t most_bytes, int wake_fd)
    : file_(std::move(file)), name_(std::move(name)), most_bytes_(most_bytes), wake_fd_(wake_fd) {}

/// Reads once. False at the end of the file, or when woken.
bool LineReader::fill() {
  buffer_.erase(0, begin_);
  scanned_ -= begin_;
  begin_ = 0;
  for (;;) {
    pollfd waits[] = {{file_.get(), POLLIN, 0}, {wake_fd_, POLLIN, 0}};
    if (::poll(waits, 2, -1) < 0) {
      if (errno == EINTR) continue;
      throw IoError(fmt::format("{}: poll: {}", name_, system_message(errno)));
    }
    if ((waits[1].revents & POLLIN) != 0) return false;
    const std::size_t filled = buffer_.size();
    buffer_.resize(filled + kReadBytes);
    const ssize_t got = ::read(file_.get(), buffer_.data() + filled, kReadBytes);
    const int error = errno;
    buffer_.resize(filled + static_cast<std::size_t>(got > 0 ? got : 0));
    if (got >= 0) return got > 0;
    if (error != EINTR && error != EAGAIN) {
      throw IoError(fmt::format("{}: reading failed after line {}: {}", name_, number_,
                                system_message(error)));
    }
  }
}

LineReader::Line LineReader::cut(std::size_t length, std::size_t end_bytes) {
  Line line;
  line.number = ++number_;
  line.whole = end_bytes > 0;
  line.too_long = std::exchange(skipping_line_, false) || length > most_bytes_;
  if (!line.too_long) {
    line.text = std::string_view(buffer_).substr(begin_, length);
    if (line.number == 1 && line.text.starts_with("\xEF\xBB\xBF")) line.text.remove_prefix(3);
  }
  begin_ += length + end_bytes;
  scanned_ = begin_;
  return line;
}

std::optional<LineReader::Line> LineReader::next() {
  for (;;) {
    const std::size_t end = buffer_.find('\n', scanned_);
    if (end != std::string::npos) return cut(end - begin_, 1);
    scanned_ = buffer_.size();
    if (buffer_.size() - begin_ > most_bytes_) {
      skipping_line_ = true;
      begin_ = buffer_.size();
    }
    if (ended_) return std::nullopt;
    if (fill()) continue;
    ended_ = true;
    if (begin_ < buffer_.size() || skipping_line_) return cut(buffer_.size() - begin_, 0);
  }
}

}  // namespace zi
