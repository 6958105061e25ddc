#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "base/file_descriptor.h"

namespace zi {

/// Opens a file, a pipe or a device for reading; `-` is standard input. Does not wait for the
/// writer of a FIFO. Throws IoError with the path.
FileDescriptor open_for_reading(const std::filesystem::path& path);

/// The lines of a file or a pipe. A byte order mark and a last line without `\n` are tolerated; the
/// `\r` of `\r\n` stays, which is white space to JSON.
class LineReader {
 public:
  struct Line {
    std::string_view text;     // without its end; valid until the next call
    std::uint64_t number = 0;  // from 1
    bool whole = true;         // false: the file ends without `\n`
    bool too_long = false;     // more than `most_bytes`: skipped, `text` is empty
    bool blank() const { return !too_long && text.find_first_not_of(" \t\r") == text.npos; }
  };

  /// `name` is for messages. As soon as `wake_fd` (an eventfd; -1: none) is readable, `next`
  /// returns.
  LineReader(FileDescriptor file, std::string name, std::size_t most_bytes, int wake_fd = -1);

  /// The next line; none at the end of the file, or when woken. Throws IoError.
  std::optional<Line> next();

 private:
  bool fill();
  Line cut(std::size_t length, std::size_t end_bytes);

  FileDescriptor file_;
  std::string name_;
  std::size_t most_bytes_;
  int wake_fd_;
  std::string buffer_;
  std::size_t begin_ = 0;    // of the next line in the buffer
  std::size_t scanned_ = 0;  // no `\n` between begin_ and here
  std::uint64_t number_ = 0;
  bool skipping_line_ = false;  // inside a line that is too long
  bool ended_ = false;
};

}  // namespace zi
