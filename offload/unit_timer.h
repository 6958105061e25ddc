#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "offload/unit_times.h"
#include "zero_infer/device.h"

namespace zi {

/// Events around what each unit does on the compute stream, of the last two passes; none until it
/// is started.
class UnitTimer {
 public:
  struct Events {
    std::unique_ptr<Event> wait_start, start, end;
    std::optional<std::uint64_t> trip = {};  // the number of its trip; none: used where it rests
  };
  struct Pass {
    std::vector<Events> units;
  };

  /// For that many units; passes are numbered from 0 again.
  void start(Device& device, std::size_t units);
  void stop() { passes_.clear(); }
  bool on() const { return !passes_.empty(); }

  /// While on: begins the next pass, and forgets the pass before the last one.
  void begin_pass() {
    if (on()) ++begun_;
  }
  /// Of the pass that runs; null while off.
  Events* events(int unit);
  /// Throws Error unless it is one of the last two.
  const Pass& pass(std::uint64_t number) const;

 private:
  std::vector<Pass> passes_;  // two, used in turn
  std::uint64_t begun_ = 0;
};

}  // namespace zi
