#pragma once

#include <chrono>
#include <cstddef>
#include <mutex>
#include <string>

namespace zi {

/// Whether `fd` (1 or 2) reaches a terminal. Under mpirun a rank's own descriptor is always a pipe
/// or a pseudo-terminal of the launcher: then the launcher's descriptor decides.
bool reaches_terminal(int fd);

/// Shows long work on stderr with rate and time left: one line that is redrawn on a terminal, a
/// plain line every ten seconds elsewhere. Nothing is shown for work of under a second. Any thread
/// may update.
class Progress {
 public:
  enum class Unit { kBytes, kItems };
  using Clock = std::chrono::steady_clock;

  /// `total` 0: unknown. A Progress that is not `shown` does nothing (other ranks, --quiet). `now`
  /// tells the time (tests have clocks of their own).
  Progress(std::string label, std::size_t total, Unit unit, bool shown,
           Clock::time_point (*now)() = &Clock::now);
  /// Ends the line on a terminal.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void add(std::size_t amount);
  /// Clears the line so that other text can be printed; it comes back with the next update.
  void clear();

 private:
  void draw(Clock::time_point now);

  std::string label_;
  std::size_t total_;
  Unit unit_;
  bool shown_;
  bool terminal_;
  std::mutex mutex_;
  std::size_t done_ = 0;
  bool drawn_ = false;
  Clock::time_point (*now_)();
  Clock::time_point start_ = now_();
  Clock::time_point last_ = start_;
};

}  // namespace zi
