#pragma once

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "zero_infer/device.h"

namespace zi {

/// Seconds of the host's steady clock.
inline double host_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// When something began and ended, on the host's steady clock; both 0 for what did not happen.
struct Interval {
  double begin = 0;
  double end = 0;
  double seconds() const { return end - begin; }
  bool happened() const { return end > begin; }
};

/// Puts the events of a device on the host's clock. The anchor is an event for which both clocks
/// were read at once, within some microseconds. It moves along, because a device measures only
/// short times with full precision.
class DeviceClock {
 public:
  /// Waits for the stream, which should be empty.
  DeviceClock(Device& device, Stream& stream) : device_(&device), anchor_(device.make_event()) {
    stream.record(*anchor_);
    anchor_->synchronize();
    base_ = host_seconds();
  }

  /// The time of the event, which must be reached.
  double seconds(const Event& event) const {
    return base_ + device_->elapsed_seconds(*anchor_, event);
  }
  Interval interval(const Event& begin, const Event& end) const {
    return {seconds(begin), seconds(end)};
  }
  /// The host saw at `moment` that the event, the last one of its stream, was reached. So the event
  /// was not later than that, nor much earlier. Keeps the two clocks, whose rates differ a little,
  /// in step.
  void keep_in_step(const Event& event, double moment) {
    const double base = moment - device_->elapsed_seconds(*anchor_, event);
    base_ = std::clamp(base_, base - kMostLate, base);
  }
  /// Makes `event`, which is reached, the anchor, and leaves another one in its place.
  void move_to(std::unique_ptr<Event>& event) {
    base_ = seconds(*event);
    std::swap(anchor_, event);
  }

 private:
  static constexpr double kMostLate = 2e-4;  // how late a host may see it

  Device* device_;
  std::unique_ptr<Event> anchor_;
  double base_ = 0;
};

}  // namespace zi
