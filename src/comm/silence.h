#pragma once

#include <algorithm>
#include <chrono>

namespace zi {

/// How long nothing was heard of a peer while this process was listening. Time in which this
/// process itself did not run (stopped by a signal, or its machine was) is no silence of the peer:
/// of a pause between two looks only what a look may take counts.
class Silence {
 public:
  using Duration = std::chrono::steady_clock::duration;

  /// `longest_pause`: what counts of the time between two looks at most.
  explicit Silence(Duration longest_pause) : longest_pause_(longest_pause) {}

  void heard() { so_far_ = Duration::zero(); }
  /// A look, `pause` after the one before, that heard nothing.
  void passed(Duration pause) { so_far_ += std::min(pause, longest_pause_); }
  Duration so_far() const { return so_far_; }

 private:
  Duration longest_pause_;
  Duration so_far_ = Duration::zero();
};

}  // namespace zi
