#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "engine/pass_times.h"
#include "engine/scheduler.h"
#include "offload/device_clock.h"
#include "offload/layer_fetcher.h"
#include "zero_infer/device.h"

namespace zi {

/// Times the passes of one rank for an observer, by events on the compute stream, and marks host
/// ranges for profilers. While there is no observer, nothing is recorded.
class PassTimer {
 public:
  /// What begins, or has ended, on the compute stream where a mark is set.
  enum class Point { kEmbed, kBlocks, kHead, kEnd };

  /// The passes are those that `fetcher` runs on `compute`. All outlive the timer.
  PassTimer(Device& device, Stream& compute, LayerFetcher& fetcher);

  /// From the next pass on, `observer` is called for each pass; empty: for none. The observer
  /// before it is called for what is left. No pass may be running.
  void observe(PassObserver observer);

  /// Begins a pass with these rows. The calls that follow it, in this order: `mark` at all four
  /// points, with `replayed` where one graph does the work of the units; `deliver_earlier` once all
  /// is enqueued; `end_pass` when the stream is synchronized.
  void begin_pass(std::span<const Chunk> chunks, bool stays);
  void mark(Point point) {
    if (observer_) compute_->record(*running().events[static_cast<std::size_t>(point)]);
  }
  void replayed() {
    if (observer_) running().replayed = true;
  }
  /// Tells the observer of the pass before, while the device works.
  void deliver_earlier();
  void end_pass(const Exchanged& exchanged, std::uint64_t network_bytes);

  /// Around what the host enqueues for a unit.
  void begin_unit(int unit);
  void end_unit() {
    if (observer_) device_->mark_end();
  }

 private:
  struct Pass {
    PassTimes times;  // what the host knows
    bool replayed = false;
    std::array<std::unique_ptr<Event>, 4> events;  // by Point
  };

  Pass& running() { return passes_[(begun_ - 1) % passes_.size()]; }
  /// Tells the observer of a pass whose work is done.
  void deliver(std::uint64_t pass);

  Device* device_;
  Stream* compute_;
  LayerFetcher* fetcher_;
  PassObserver observer_;
  std::optional<DeviceClock> clock_;
  std::array<Pass, 2> passes_;  // in turn
  std::uint64_t begun_ = 0;
  std::uint64_t delivered_ = 0;
};

}  // namespace zi
