#include "engine/pass_timer.h"

#include <fmt/format.h>

#include <utility>

namespace zi {

PassTimer::PassTimer(Device& device, Stream& compute, LayerFetcher& fetcher)
    : device_(&device), compute_(&compute), fetcher_(&fetcher) {}

void PassTimer::observe(PassObserver observer) {
  while (delivered_ < begun_) deliver(delivered_);
  observer_ = std::move(observer);
  begun_ = delivered_ = 0;
  fetcher_->time_units(static_cast<bool>(observer_));
  if (!observer_) return;
  clock_.emplace(*device_, *compute_);
  for (Pass& pass : passes_) {
    for (std::unique_ptr<Event>& event : pass.events) event = device_->make_event();
  }
}

void PassTimer::begin_pass(std::span<const Chunk> chunks, bool stays) {
  if (!observer_) return;
  Pass& pass = passes_[begun_ % passes_.size()];
  pass.times = {};
  pass.times.pass = begun_;
  pass.times.stays = stays;
  pass.times.host.begin = host_seconds();
  for (const Chunk& c : chunks) pass.times.rows += c.count;
  pass.replayed = false;
  ++begun_;
  device_->mark_begin(fmt::format("pass {}", pass.times.pass));
}

void PassTimer::deliver_earlier() {
  if (begun_ > delivered_ + 1) deliver(delivered_);
}

void PassTimer::end_pass(const Exchanged& exchanged, std::uint64_t network_bytes) {
  if (!observer_) return;
  running().times.host.end = host_seconds();
  running().times.exchanged = exchanged;
  running().times.network_bytes = network_bytes;
  device_->mark_end();
}

void PassTimer::begin_unit(int unit) {
  if (observer_) device_->mark_begin(fmt::format("unit {}", unit));
}

void PassTimer::deliver(std::uint64_t pass) {
  Pass& timed = passes_[pass % passes_.size()];
  PassTimes& times = timed.times;
  auto& [embed, blocks, head, end] = timed.events;
  clock_->keep_in_step(*end, times.host.end);
  times.embed = clock_->interval(*embed, *blocks);
  times.head = clock_->interval(*head, *end);
  if (timed.replayed) {
    times.graph = clock_->interval(*blocks, *head);
  } else {
    times.units = fetcher_->unit_times(pass, *clock_);
  }
  clock_->move_to(embed);
  ++delivered_;
  observer_(times);
}

}  // namespace zi
