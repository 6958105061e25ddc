#include "text/result_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>
#include <utility>

#include "base/system_error.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

/// Offset after the last `\n`.
off_t end_of_last_whole_line(int fd, off_t size, const std::string& path) {
  std::array<char, 64 << 10> block;
  for (off_t end = size; end > 0;) {
    const off_t begin = std::max<off_t>(0, end - static_cast<off_t>(block.size()));
    const auto length = static_cast<std::size_t>(end - begin);
    const ssize_t got = ::pread(fd, block.data(), length, begin);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw IoError(system_error_text(path, "reading its end failed", errno));
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

}  // namespace

ResultFile::ResultFile(const std::filesystem::path& path, bool resume)
    : file_(path, "--output", resume ? OutputFile::Mode::kAppend : OutputFile::Mode::kReplace) {
  if (!resume || path == "-") return;
  const off_t size = file_.size();
  finished_ = std::make_shared<const FinishedPrompts>(
      FinishedPrompts::read(file_.open_for_reading(), file_.name()));
  const off_t end = end_of_last_whole_line(file_.open_for_reading().get(), size, file_.name());
  if (end == size) return;
  file_.cut(end);
  log_warning(fmt::format("{}: the last line was not finished; its {} bytes are cut off",
                          file_.name(), size - end));
}

void ResultFile::write(const Result& result) { file_.write(result.to_json() + '\n'); }

}  // namespace zi
