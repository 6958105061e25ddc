#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/forwarding_ops.h"

namespace zi {

/// Ops that also time every operation by a pair of events on its stream. `times` waits for the
/// device. The events cost about a microsecond each.
class TimingOps final : public ForwardingOps {
 public:
  struct Time {
    double seconds = 0;
    std::int64_t count = 0;
  };

  TimingOps(Device& device, std::unique_ptr<Ops> inner)
      : ForwardingOps(std::move(inner)), device_(&device) {}

  /// A replayed graph would not come by here.
  bool recordable() const override { return false; }

  /// Forgets what was timed so far; from now on, while `on`, operations are timed.
  void start(bool on) {
    on_ = on;
    used_ = 0;
    names_.clear();
  }
  /// By operation; products by their shape.
  std::map<std::string, Time> times() const {
    std::map<std::string, Time> out;
    for (std::size_t i = 0; i < used_; ++i) {
      spans_[i].second->synchronize();
      Time& time = out[names_[i]];
      time.seconds += device_->elapsed_seconds(*spans_[i].first, *spans_[i].second);
      ++time.count;
    }
    return out;
  }

 private:
  void before(const Call& call, Stream& stream) override {
    if (!on_) return;
    if (used_ == spans_.size()) {
      spans_.emplace_back(device_->make_event(), device_->make_event());
    }
    std::string name = call.op;
    if (call.weights != nullptr) {
      name += " " + std::to_string(call.rows) + " x " + std::to_string(call.weights->cols()) +
              " x " + std::to_string(call.weights->padded_rows());
    }
    names_.push_back(std::move(name));
    stream.record(*spans_[used_].first);
  }
  void after(Stream& stream) override {
    if (on_) stream.record(*spans_[used_++].second);
  }

  Device* device_;
  bool on_ = false;
  std::size_t used_ = 0;
  std::vector<std::pair<std::unique_ptr<Event>, std::unique_ptr<Event>>> spans_;
  std::vector<std::string> names_;
};

}  // namespace zi
