#include "base/progress.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "zero_infer/bytes.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

std::string duration(double seconds) {
  const auto s = static_cast<long>(seconds + 0.5);
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{}:{:02} min", s / 60, s % 60);
  return fmt::format("{}:{:02} h", s / 3600, s / 60 % 60);
}

}  // namespace

bool reaches_terminal(int fd) {
  if (std::getenv("OMPI_COMM_WORLD_RANK") == nullptr) return isatty(fd) == 1;
  struct stat info {};
  const std::string launcher = fmt::format("/proc/{}/fd/{}", getppid(), fd);
  if (stat(launcher.c_str(), &info) != 0 || !S_ISCHR(info.st_mode)) return false;
  constexpr unsigned kTty = 4, kTtyAux = 5, kPtsFirst = 136, kPtsLast = 143;  // devices.txt
  const unsigned device = major(info.st_rdev);
  return device == kTty || device == kTtyAux || (device >= kPtsFirst && device <= kPtsLast);
}

Progress::Progress(std::string label, std::size_t total, Unit unit, bool shown,
                   Clock::time_point (*now)())
    : label_(std::move(label)),
      total_(total),
      unit_(unit),
      shown_(shown),
      terminal_(shown && reaches_terminal(STDERR_FILENO)),
      now_(now) {}

Progress::~Progress() { clear(); }

void Progress::add(std::size_t amount) {
  if (!shown_) return;
  const std::scoped_lock lock(mutex_);
  done_ += amount;
  const auto now = now_();
  const auto pause = terminal_ ? std::chrono::milliseconds(200) : std::chrono::milliseconds(10'000);
  if (now - last_ >= pause && now - start_ >= std::chrono::seconds(1)) {
    last_ = now;
    draw(now);
  }
}

void Progress::draw(Clock::time_point now) {
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double rate = static_cast<double>(done_) / seconds;
  std::string line = label_ + ": ";
  if (unit_ == Unit::kBytes) {
    line += format_bytes(static_cast<double>(done_));
    if (total_ != 0) line += " of " + format_bytes(static_cast<double>(total_));
    line += fmt::format(", {}/s", format_bytes(rate));
  } else {
    line += total_ != 0 ? fmt::format("{} of {}", done_, total_) : fmt::format("{}", done_);
    line += fmt::format(", {:.1f}/s", rate);
  }
  if (total_ > done_ && rate > 0) {
    line += fmt::format(", {} left", duration(static_cast<double>(total_ - done_) / rate));
  }
  if (terminal_) {
    std::fprintf(stderr, "\r\x1b[K%s", line.c_str());
    std::fflush(stderr);
    drawn_ = true;
  } else {
    log_info(line);
  }
}

void Progress::clear() {
  if (!shown_) return;
  const std::scoped_lock lock(mutex_);
  if (!drawn_) return;
  std::fputs("\r\x1b[K", stderr);
  std::fflush(stderr);
  drawn_ = false;
}

}  // namespace zi
