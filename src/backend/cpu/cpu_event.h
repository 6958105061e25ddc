#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <vector>

#include "zero_infer/device.h"

namespace zi {

/// What an event and the tasks that refer to it share, so that either may be destroyed first. Each
/// record makes a new generation; streams may reach generations out of order when an event is
/// recorded on several.
class EventState {
 public:
  using Clock = std::chrono::steady_clock;

  /// Host: opens the next generation and returns it.
  std::uint64_t open();
  /// Worker: the generation is reached. `failure`: the exception that its stream holds, or null.
  void reach(std::uint64_t generation, const std::exception_ptr& failure);

  /// The last generation that was opened; 0 before the first record.
  std::uint64_t latest() const;
  bool reached(std::uint64_t generation) const;
  /// Sleeps until the generation is reached; returns the failure of the stream that reached it.
  std::exception_ptr wait(std::uint64_t generation) const;
  /// When the last generation was reached; throws Error when it was never recorded or is pending.
  Clock::time_point reached_at() const;

 private:
  bool pending(std::uint64_t generation) const;  // caller holds mutex_

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::uint64_t latest_ = 0;
  std::vector<std::uint64_t> pending_;  // opened and not reached: one or two
  std::exception_ptr failure_;
  Clock::time_point reached_at_;
};

class CpuEvent final : public Event {
 public:
  CpuEvent() : state_(std::make_shared<EventState>()) {}
  bool reached() const override { return state_->reached(state_->latest()); }
  void synchronize() const override { state_->wait(state_->latest()); }
  const std::shared_ptr<EventState>& state() const { return state_; }

 private:
  std::shared_ptr<EventState> state_;
};

}  // namespace zi
