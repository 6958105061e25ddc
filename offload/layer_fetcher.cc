#include "offload/layer_fetcher.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>

#include "offload/trip_queue.h"
#include "offload/trip_runner.h"
#include "offload/unit_timer.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

TripUnits checked(TripUnits units) {
  units.check();
  return units;
}

}  // namespace

struct LayerFetcher::State {
  State(Device& dev, Communicator* communicator, TripUnits travelling, int slot_count,
        Stream& gathers, Buffer slots)
      : device(dev),
        trips(dev, communicator, checked(std::move(travelling)), slot_count, gathers,
              std::move(slots)),
        units(trips.units()),
        world(units.world()),
        queue(units.tiers(), trips.slots() - (trips.nvme_slot() ? 1 : 0),
              world > 1 && !units.only_own, trips.nvme_slot(), units.replicated()) {}

  int count() const { return static_cast<int>(units.layouts.size()); }
  UnitWeights weights(int unit) const;
  void start_reads();
  void fetch_ahead();
  void fetch(Trip& trip);
  void run(int unit, const UnitWeights& weights,
           const std::function<void(int, const UnitWeights&)>& body, Stream& compute);
  UnitTimes times_of(int unit, const UnitTimer::Events& events, const DeviceClock& clock) const;

  Device& device;
  UnitTimer timer;
  TripRunner trips;
  const TripUnits& units;
  int world;
  TripQueue queue;
  bool staying = false;  // the pass that runs
  bool failed = false;
};

UnitWeights LayerFetcher::State::weights(int unit) const {
  if (queue.is_turn_of(unit)) return trips.weights(queue.front(), staying);
  return units.resting(unit, staying);
}

/// Stores take what their staging has room for.
void LayerFetcher::State::start_reads() {
  while (Trip* const trip = queue.next_read()) trips.start_read(*trip);
}

/// Fetches into every slot that is free or whose compute is enqueued, but only while the host need
/// not wait for storage: enqueueing compute comes first.
void LayerFetcher::State::fetch_ahead() {
  for (Trip* trip = queue.next(); trip != nullptr; trip = queue.next()) {
    if (trip->slot < 0 && units.store(trip->unit).tier() == Tier::kNvme) return;
    fetch(*trip);
  }
}

void LayerFetcher::State::fetch(Trip& trip) {
  trips.fetch(trip, queue);
  start_reads();
}

void LayerFetcher::State::run(int unit, const UnitWeights& weights,
                              const std::function<void(int, const UnitWeights&)>& body,
                              Stream& compute) {
  const bool travelled = queue.is_turn_of(unit);
  const bool idle = queue.trips_of_a_pass() == 0 && !travelled && !body;
  UnitTimer::Events* const events = idle ? nullptr : timer.events(unit);
  if (events != nullptr)
    events->trip = travelled ? std::optional(queue.front().number) : std::nullopt;
  if (travelled) {
    if (events != nullptr) compute.record(*events->wait_start);
    trips.await(queue.front(), compute);
  }
  if (events != nullptr) compute.record(*events->start);
  // Also when the body throws: what it enqueued before still reads the slot.
  try {
    if (body) body(unit, weights);
  } catch (...) {
    if (travelled) trips.release(queue.front(), compute);
    throw;
  }
  if (events != nullptr) compute.record(*events->end);
  if (!travelled) return;
  if (body) trips.stats().host_bytes += weights.host_bytes();
  trips.release(queue.front(), compute);
  queue.consume();
}

UnitTimes LayerFetcher::State::times_of(int unit, const UnitTimer::Events& events,
                                        const DeviceClock& clock) const {
  UnitTimes times;
  times.unit = unit;
  times.tier = units.store(unit).tier();
  times.compute = clock.interval(*events.start, *events.end);
  if (events.trip) {
    times.wait = clock.interval(*events.wait_start, *events.start);
    trips.add_times(*events.trip, times, clock);
  }
  return times;
}

LayerFetcher::LayerFetcher(Device& device, Communicator* communicator, int rank,
                           std::vector<const PartitionLayout*> layouts,
                           std::vector<ShardStore*> stores, int slot_count, Stream& gathers,
                           Buffer slots, bool only_own)
    : state_(std::make_unique<State>(
          device, communicator, TripUnits{std::move(layouts), std::move(stores), rank, only_own},
          slot_count, gathers, std::move(slots))) {}

LayerFetcher::~LayerFetcher() = default;

bool LayerFetcher::has_nvme_slot(const std::vector<const PartitionLayout*>& layouts,
                                 const std::vector<Tier>& tiers, bool only_own,
                                 const std::vector<bool>& replicated) {
  return TripRunner::has_nvme_slot(layouts, tiers, only_own, replicated);
}

std::size_t LayerFetcher::slots_bytes(const std::vector<const PartitionLayout*>& layouts,
                                      const std::vector<Tier>& tiers, int slot_count, bool only_own,
                                      const std::vector<bool>& replicated) {
  return TripRunner::slots_bytes(layouts, tiers, slot_count, only_own, replicated);
}

void LayerFetcher::run_pass(const std::function<void(int unit, const UnitWeights& weights)>& body,
                            Stream& compute, const Pass& pass,
                            const std::function<void()>& after_units) {
  State& s = *state_;
  if (s.failed) throw Error("an earlier pass failed; the layer fetcher cannot continue");
  if (s.units.only_own && s.world > 1 && !pass.stays) {
    throw Error("the slots of the layer fetcher hold no gathered unit");
  }
  s.failed = true;  // until the end is reached
  s.timer.begin_pass();
  s.staying = pass.stays;
  s.queue.plan_pass(s.world > 1 && !pass.stays, pass.last, pass.host_share);
  s.start_reads();
  s.fetch_ahead();
  for (int unit = 0; unit < s.count(); ++unit) {
    // Waits for storage at most, with all earlier bodies enqueued.
    while (s.queue.is_turn_of(unit) && !s.queue.front().complete()) s.fetch(s.queue.front());
    s.run(unit, s.weights(unit), body, compute);
    if (unit + 1 == s.count() && after_units) after_units();
    s.start_reads();
    s.fetch_ahead();
  }
  ++s.trips.stats().passes;
  if (pass.stays) ++s.trips.stats().staying;
  s.failed = false;
}

void LayerFetcher::time_units(bool on) {
  State& s = *state_;
  if (on) {
    s.timer.start(s.device, s.units.layouts.size());
  } else {
    s.timer.stop();
  }
  s.trips.mark_fetches(on);
}

std::vector<UnitTimes> LayerFetcher::unit_times(std::uint64_t pass,
                                                const DeviceClock& clock) const {
  const State& s = *state_;
  const UnitTimer::Pass& timed = s.timer.pass(pass);
  std::vector<UnitTimes> all;
  for (std::size_t u = 0; u < timed.units.size(); ++u) {
    all.push_back(s.times_of(static_cast<int>(u), timed.units[u], clock));
  }
  return all;
}

bool LayerFetcher::all_resident(bool stays) const {
  const State& s = *state_;
  for (int unit = 0; unit < s.count(); ++unit) {
    if (!s.units.rests(unit, stays)) return false;
  }
  return true;
}

UnitWeights LayerFetcher::resident_weights(int unit, bool stays) const {
  const State& s = *state_;
  if (!s.units.rests(unit, stays)) {
    throw Error(fmt::format("unit {} is in a slot only during its turn", unit));
  }
  return s.units.resting(unit, stays);
}

const PerLink<std::size_t>& LayerFetcher::moved() const { return state_->trips.stats().bytes; }

FetchStats LayerFetcher::take_stats() {
  state_->trips.collect_times();
  return std::exchange(state_->trips.stats(), {});
}

}  // namespace zi
