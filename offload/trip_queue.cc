#include "offload/trip_queue.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "zero_infer/error.h"

namespace zi {
namespace {

/// Units of the next pass that are gathered before the caller may enqueue gathers of its own for
/// it: two, the one that is awaited and the one that travels meanwhile.
constexpr std::size_t kAheadOfAPass = 2;

}  // namespace

TripQueue::TripQueue(std::vector<Tier> tiers, std::size_t slots, bool mixed, bool nvme_slot,
                     std::vector<bool> replicated)
    : tiers_(std::move(tiers)),
      replicated_(std::move(replicated)),
      slots_(slots),
      mixed_(mixed),
      nvme_slot_free_(nvme_slot) {
  for (std::size_t s = 0; s < slots; ++s) free_.push_back(static_cast<int>(s));
}

void TripQueue::plan_pass(bool gathers, bool last, double host_share) {
  std::deque<Trip> under_way = std::exchange(trips_, {});
  const auto share_of = [&](int unit) {
    const bool on_host = tiers_[static_cast<std::size_t>(unit)] == Tier::kHost;
    return on_host ? host_share : 0;
  };
  for (int unit = 0; unit < static_cast<int>(tiers_.size()); ++unit) {
    Trip trip{.unit = unit};
    if (!under_way.empty() && under_way.front().unit == unit) {
      trip = under_way.front();
      under_way.pop_front();
    }
    // A unit of the device tier that was gathered on a wrong guess holds a slot until its turn.
    if (rests(unit, gathers) && trip.slot < 0) continue;
    trip.gathers = gathers || trip.gathered;
    trip.host_share = trip.gathers ? 0 : share_of(unit);
    trips_.push_back(trip);
  }
  const std::size_t of_this = trips_.size();
  trips_of_a_pass_ = 0;
  for (int unit = 0; unit < static_cast<int>(tiers_.size()); ++unit) {
    if (rests(unit, gathers)) continue;
    ++trips_of_a_pass_;
    if (last) continue;
    trips_.push_back(
        {.unit = unit, .gathers = gathers, .host_share = gathers ? 0 : share_of(unit)});
  }
  // Own shards that were fetched ahead must leave a slot for a pass that gathers after all.
  const std::size_t ahead = gathers  ? kAheadOfAPass
                            : mixed_ ? std::min(kAheadOfAPass, std::max<std::size_t>(slots_, 1) - 1)
                                     : trips_.size();
  allowed_ = std::min(trips_.size(), of_this + ahead);
}

void TripQueue::consume() {
  const int slot = trips_.front().slot;
  if (slot == static_cast<int>(slots_)) {
    nvme_slot_free_ = true;
  } else {
    free_.push_back(slot);
  }
  trips_.pop_front();
  --allowed_;
}

std::size_t TripQueue::complete_ahead() const {
  return static_cast<std::size_t>(std::ranges::find_if_not(trips_, &Trip::complete) -
                                  trips_.begin());
}

Trip* TripQueue::next() {
  const std::size_t at = complete_ahead();
  if (at >= allowed_ || (trips_[at].slot < 0 && !has_slot_for(trips_[at]))) return nullptr;
  return &trips_[at];
}

void TripQueue::take_slot(Trip& trip) {
  if (!has_slot_for(trip)) throw Error(fmt::format("no slot is free for unit {}", trip.unit));
  if (nvme_slot_free_ && on_nvme(trip)) {
    trip.slot = static_cast<int>(slots_);
    nvme_slot_free_ = false;
    return;
  }
  trip.slot = free_.front();
  free_.pop_front();
}

Trip* TripQueue::next_read() {
  const std::size_t end = std::min(trips_.size(), complete_ahead() + trips_of_a_pass_);
  for (std::size_t i = 0; i < end; ++i) {
    Trip& trip = trips_[i];
    // A trip of the device tier may yet be dropped: it is read when it is copied.
    const bool on_device = tiers_[static_cast<std::size_t>(trip.unit)] == Tier::kDevice;
    if (!on_device && !trip.read_started) return &trip;
  }
  return nullptr;
}

}  // namespace zi
