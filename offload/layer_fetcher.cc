#include "offload/layer_fetcher.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "offload/unit_timer.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

/// Units of the next pass that are gathered before the caller may enqueue gathers of its own for
/// it: two, the one that is awaited and the one that travels meanwhile.
constexpr std::uint64_t kAheadOfAPass = 2;

bool travels(const PartitionLayout& layout, Tier tier) {
  return layout.world() > 1 || tier != Tier::kDevice;
}

}  // namespace

FetchStats& FetchStats::operator+=(const FetchStats& other) {
  passes += other.passes;
  bytes += other.bytes;
  gather_seconds += other.gather_seconds;
  return *this;
}

/// Trips are numbered through all passes: trip t brings travelling unit t % M into slot t %
/// slot_count. On every rank, reads start, trips are fetched and slots are consumed in this order.
struct LayerFetcher::State {
  using Trip = std::uint64_t;

  /// Events of one trip. The ring of them is long enough for two passes and what those fetch ahead.
  /// They order the streams (a wait refers to the record before it, so reuse is safe) and time
  /// them.
  struct TripEvents {
    std::unique_ptr<Event> copy_start, copied, gather_start, gathered;
    ReadTimes read;
  };
  struct Slot {
    std::byte* data = nullptr;
    std::unique_ptr<Event> consumed;  // recorded on the compute stream
  };

  State(Device& dev, Communicator* comm, int own_rank, std::vector<const PartitionLayout*> lay,
        std::vector<ShardStore*> sto, int slot_count, Stream& gather_stream, Buffer slot_memory);
  ~State();

  void check() const;
  int unit_of(Trip trip) const { return travellers[trip % travellers.size()]; }
  Slot& slot_of(Trip trip) { return slots[trip % slots.size()]; }
  TripEvents& events_of(Trip trip) { return ring[trip % ring.size()]; }
  Event& ready(Trip trip) {
    return world > 1 ? *events_of(trip).gathered : *events_of(trip).copied;
  }
  const PartitionLayout& layout(int unit) const { return *layouts[static_cast<std::size_t>(unit)]; }
  ShardStore& store(int unit) const { return *stores[static_cast<std::size_t>(unit)]; }

  bool unit_travels(int unit) const { return travels(layout(unit), store(unit).tier()); }
  /// Where they rest, or in the slot of the unit's trip, whose turn it is.
  UnitWeights weights(int unit) {
    return {&layout(unit),
            unit_travels(unit) ? slot_of(consumed).data : store(unit).resident(unit)};
  }

  void start_reads();
  void fetch_ahead();
  void fetch_through(Trip trip);
  void fetch(Trip trip);
  void copy(Trip trip, std::byte* dst);
  void gather(Trip trip, const std::byte* shard);
  void run(int unit, const UnitWeights& weights,
           const std::function<void(int, const UnitWeights&)>& body, Stream& compute);
  UnitTimes times_of(int unit, const UnitTimer::Events& events, const DeviceClock& clock) const;
  void add_trip_times(Trip trip, UnitTimes& times, const DeviceClock& clock) const;
  void collect_times();

  Device& device;
  Communicator* communicator;
  int rank;
  int world = 1;
  std::vector<const PartitionLayout*> layouts;
  std::vector<ShardStore*> stores;
  std::vector<int> travellers;  // units that need a slot, in order
  Stream& gathers;
  Buffer memory;
  std::vector<Slot> slots;
  std::vector<TripEvents> ring;

  Trip known = 0;      // trips below this one will surely be needed
  Trip allowed = 0;    // copies and gathers below this one may be enqueued
  Trip started = 0;    // reads below this one are started
  Trip fetched = 0;    // copies and gathers below this one are enqueued
  Trip consumed = 0;   // compute of trips below this one is enqueued
  Trip collected = 0;  // times of trips below this one are in the statistics, or lost
  bool failed = false;
  FetchStats stats;
  UnitTimer timer;

  std::unique_ptr<Stream> copies;  // last: its destructor waits for work on all of the above
};

LayerFetcher::State::State(Device& dev, Communicator* comm, int own_rank,
                           std::vector<const PartitionLayout*> lay, std::vector<ShardStore*> sto,
                           int slot_count, Stream& gather_stream, Buffer slot_memory)
    : device(dev),
      communicator(comm),
      rank(own_rank),
      layouts(std::move(lay)),
      stores(std::move(sto)),
      gathers(gather_stream) {
  check();
  world = layouts.empty() ? 1 : layouts.front()->world();
  std::vector<Tier> tiers;
  for (std::size_t u = 0; u < layouts.size(); ++u) {
    tiers.push_back(stores[u]->tier());
    if (travels(*layouts[u], tiers[u])) travellers.push_back(static_cast<int>(u));
  }
  copies = device.make_stream("copies");
  const std::size_t bytes = slots_bytes(layouts, tiers, slot_count);
  if (bytes == 0) return;
  memory = std::move(slot_memory);
  if (memory.bytes() == 0) memory = device.allocate(bytes);
  if (memory.bytes() < bytes)
    throw Error("the layer fetcher was given too little memory for slots");
  const auto count = static_cast<std::size_t>(slot_count);
  for (std::size_t s = 0; s < count; ++s) {
    slots.push_back({memory.data() + s * (bytes / count), device.make_event()});
  }
  // A caller that waits for the device between passes has at most one pass and the slots fetched
  // ahead in flight, and may ask for the times of the pass before.
  ring.resize(2 * travellers.size() + count);
  for (TripEvents& events : ring) {
    events.copy_start = device.make_event();
    events.copied = device.make_event();
    events.gather_start = device.make_event();
    events.gathered = device.make_event();
  }
}

void LayerFetcher::State::check() const {
  if (layouts.size() != stores.size()) {
    throw Error(fmt::format("the layer fetcher was given {} layouts but {} stores", layouts.size(),
                            stores.size()));
  }
  for (std::size_t u = 0; u < layouts.size(); ++u) {
    if (layouts[u] == nullptr || stores[u] == nullptr) {
      throw Error(fmt::format("unit {} has no layout or no store", u));
    }
    if (layouts[u]->world() != layouts.front()->world()) {
      throw Error(fmt::format("unit {} is cut for {} ranks and unit 0 for {}", u,
                              layouts[u]->world(), layouts.front()->world()));
    }
  }
  const int ranks = layouts.empty() ? 1 : layouts.front()->world();
  if (rank < 0 || rank >= ranks)
    throw Error(fmt::format("rank {} is not in a world of {}", rank, ranks));
  if (ranks > 1 && communicator == nullptr) {
    throw Error(fmt::format("a world of {} needs a communicator", ranks));
  }
}

LayerFetcher::State::~State() {
  // All that may still use slots or stores: copies, gathers, and what bodies enqueued. The gathers
  // enqueued here are enqueued on every rank, or a rank failed before them; that rank gets through
  // here and ends the job, so nobody waits forever.
  const auto settle = [](auto& queue) {
    try {
      queue.synchronize();
    } catch (const std::exception& e) {
      log_verbose(fmt::format("while the layer fetcher ended: {}", e.what()));
    }
  };
  if (copies) settle(*copies);
  if (fetched != 0 && world > 1) settle(gathers);
  for (Slot& slot : slots) settle(*slot.consumed);
}

/// Reads run ahead until each unit is under way once: stores take what their staging has room for.
void LayerFetcher::State::start_reads() {
  const Trip end = std::min<Trip>(known, fetched + travellers.size());
  for (; started < end; ++started) {
    const int unit = unit_of(started);
    store(unit).start_read(unit);
  }
}

/// Fetches into every slot that is free or whose compute is enqueued, but only while the host need
/// not wait for storage: enqueueing compute comes first.
void LayerFetcher::State::fetch_ahead() {
  const Trip end = std::min<Trip>(allowed, consumed + slots.size());
  while (fetched < end && store(unit_of(fetched)).tier() != Tier::kNvme) fetch(fetched);
}

void LayerFetcher::State::fetch_through(Trip trip) {
  while (fetched <= trip) fetch(fetched);
}

void LayerFetcher::State::fetch(Trip trip) {
  collect_times();
  // A trip that leaves the ring untimed would be timed with its successor's events.
  if (trip >= ring.size()) collected = std::max<Trip>(collected, trip - ring.size() + 1);
  const int unit = unit_of(trip);
  const std::size_t bytes = layout(unit).shard_bytes();
  std::byte* place = slot_of(trip).data + static_cast<std::size_t>(rank) * bytes;
  TripEvents& events = events_of(trip);
  if (timer.on()) device.mark_begin(fmt::format("fetch unit {}", unit));
  // A shard that rests on the device is copied to its place in the slot as well, while the gather
  // before is running. A gather in place then need not move it; copy engines would do that one
  // after the other.
  copy(trip, place);
  if (world > 1) {
    gathers.wait(*events.copied);
    gather(trip, place);
  }
  if (timer.on()) device.mark_end();
  ++fetched;
  start_reads();
}

void LayerFetcher::State::copy(Trip trip, std::byte* dst) {
  const int unit = unit_of(trip);
  const std::size_t bytes = layout(unit).shard_bytes();
  TripEvents& events = events_of(trip);
  copies->wait(*slot_of(trip).consumed);
  copies->record(*events.copy_start);
  store(unit).finish_read(unit, dst, *copies);
  events.read = {};
  if (store(unit).tier() == Tier::kNvme) {
    stats.bytes[Link::kRead] += bytes;
    events.read = store(unit).last_read();
  }
  if (store(unit).tier() != Tier::kDevice) stats.bytes[Link::kCopy] += bytes;
  copies->record(*events.copied);
}

void LayerFetcher::State::gather(Trip trip, const std::byte* shard) {
  const std::size_t bytes = layout(unit_of(trip)).shard_bytes();
  TripEvents& events = events_of(trip);
  gathers.record(*events.gather_start);
  communicator->all_gather(shard, slot_of(trip).data, bytes, gathers);
  gathers.record(*events.gathered);
  stats.bytes[Link::kGather] += bytes * static_cast<std::size_t>(world - 1);
}

void LayerFetcher::State::collect_times() {
  for (; collected < fetched; ++collected) {
    TripEvents& events = events_of(collected);
    if (!ready(collected).reached()) return;
    if (world > 1) {
      stats.gather_seconds += device.elapsed_seconds(*events.gather_start, *events.gathered);
    }
  }
}

void LayerFetcher::State::run(int unit, const UnitWeights& weights,
                              const std::function<void(int, const UnitWeights&)>& body,
                              Stream& compute) {
  const bool idle = travellers.empty() && !body;
  UnitTimer::Events* const events = idle ? nullptr : timer.events(unit);
  const bool travelled = unit_travels(unit);
  if (travelled) {
    if (events != nullptr) compute.record(*events->wait_start);
    compute.wait(ready(consumed));
  }
  if (events != nullptr) compute.record(*events->start);
  // Also when the body throws: what it enqueued before still reads the slot.
  try {
    if (body) body(unit, weights);
  } catch (...) {
    if (travelled) compute.record(*slot_of(consumed).consumed);
    throw;
  }
  if (events != nullptr) compute.record(*events->end);
  if (!travelled) return;
  compute.record(*slot_of(consumed).consumed);
  ++consumed;
}

UnitTimes LayerFetcher::State::times_of(int unit, const UnitTimer::Events& events,
                                        const DeviceClock& clock) const {
  UnitTimes times;
  times.unit = unit;
  times.tier = store(unit).tier();
  times.compute = clock.interval(*events.start, *events.end);
  if (travels(layout(unit), times.tier)) {
    times.wait = clock.interval(*events.wait_start, *events.start);
  }
  return times;
}

void LayerFetcher::State::add_trip_times(Trip trip, UnitTimes& times,
                                         const DeviceClock& clock) const {
  const TripEvents& events = ring[trip % ring.size()];
  times.moved[Link::kRead] = {events.read.begin, events.read.end};
  Interval& copy = times.moved[Link::kCopy];
  copy = clock.interval(*events.copy_start, *events.copied);
  // The stream's wait is enqueued where the copies are, as storage delivers them.
  copy.begin = std::clamp(events.read.taken, copy.begin, copy.end);
  if (world > 1) {
    times.moved[Link::kGather] = clock.interval(*events.gather_start, *events.gathered);
  }
}

LayerFetcher::LayerFetcher(Device& device, Communicator* communicator, int rank,
                           std::vector<const PartitionLayout*> layouts,
                           std::vector<ShardStore*> stores, int slot_count, Stream& gathers,
                           Buffer slots)
    : state_(std::make_unique<State>(device, communicator, rank, std::move(layouts),
                                     std::move(stores), slot_count, gathers, std::move(slots))) {}

LayerFetcher::~LayerFetcher() = default;

std::size_t LayerFetcher::slots_bytes(const std::vector<const PartitionLayout*>& layouts,
                                      const std::vector<Tier>& tiers, int slot_count) {
  if (slot_count < 2) {
    throw ConfigError(fmt::format(
        "{} slots are too few: one unit computes while the next travels, which takes 2 at least",
        slot_count));
  }
  std::size_t largest = 0;
  for (std::size_t u = 0; u < layouts.size(); ++u) {
    if (!travels(*layouts[u], tiers.at(u))) continue;
    largest = std::max(largest, layouts[u]->gathered_bytes());
  }
  return align_up(largest, kPageBytes) * static_cast<std::size_t>(slot_count);
}

void LayerFetcher::run_pass(const std::function<void(int unit, const UnitWeights& weights)>& body,
                            Stream& compute, bool last, const std::function<void()>& after_units) {
  State& s = *state_;
  if (s.failed) throw Error("an earlier pass failed; the layer fetcher cannot continue");
  s.failed = true;  // until the end is reached
  s.timer.begin_pass(s.consumed);
  // This pass's trips, and those of the next one, which will come.
  const State::Trip end = s.consumed + s.travellers.size();
  s.known = last ? end : end + s.travellers.size();
  s.allowed = s.world == 1 ? s.known : std::min(s.known, end + kAheadOfAPass);
  s.start_reads();
  s.fetch_ahead();
  for (int unit = 0; unit < static_cast<int>(s.layouts.size()); ++unit) {
    if (s.unit_travels(unit)) {
      s.fetch_through(s.consumed);  // waits for storage at most, with all earlier bodies enqueued
    }
    s.run(unit, s.weights(unit), body, compute);
    if (unit + 1 == static_cast<int>(s.layouts.size()) && after_units) after_units();
    s.start_reads();
    s.fetch_ahead();
  }
  ++s.stats.passes;
  s.failed = false;
}

void LayerFetcher::time_units(bool on) {
  if (on) {
    state_->timer.start(state_->device, state_->layouts.size());
  } else {
    state_->timer.stop();
  }
}

std::vector<UnitTimes> LayerFetcher::unit_times(std::uint64_t pass,
                                                const DeviceClock& clock) const {
  const State& s = *state_;
  const UnitTimer::Pass& timed = s.timer.pass(pass);
  std::vector<UnitTimes> all;
  State::Trip trip = timed.first_trip;
  for (std::size_t u = 0; u < timed.units.size(); ++u) {
    all.push_back(s.times_of(static_cast<int>(u), timed.units[u], clock));
    if (travels(*s.layouts[u], all.back().tier)) s.add_trip_times(trip++, all.back(), clock);
  }
  return all;
}

bool LayerFetcher::all_resident() const { return state_->travellers.empty(); }

UnitWeights LayerFetcher::resident_weights(int unit) const {
  if (state_->unit_travels(unit)) {
    throw Error(fmt::format("unit {} is in a slot only during its turn", unit));
  }
  return state_->weights(unit);
}

FetchStats LayerFetcher::take_stats() {
  state_->collect_times();
  return std::exchange(state_->stats, {});
}

}  // namespace zi
