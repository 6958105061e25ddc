#include "offload/layer_fetcher.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "offload/trip_queue.h"
#include "offload/unit_timer.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

/// Whether a unit needs a slot in some pass.
bool travels(const PartitionLayout& layout, Tier tier, bool only_own) {
  return tier != Tier::kDevice || (layout.world() > 1 && !only_own);
}

}  // namespace

RowBlockMatrix UnitWeights::matrix(std::size_t i) const {
  RowBlockMatrix matrix = layout->gathered(i, data);
  matrix.only_block = only_block;
  return matrix;
}

FetchStats& FetchStats::operator+=(const FetchStats& other) {
  passes += other.passes;
  staying += other.staying;
  bytes += other.bytes;
  gather_seconds += other.gather_seconds;
  return *this;
}

struct LayerFetcher::State {
  using Number = std::uint64_t;  // of the times that something is brought, through all passes

  /// The ring of them is long enough for two passes and what those fetch ahead. They order the
  /// streams (a wait refers to the record before it, so reuse is safe) and time them.
  struct TripEvents {
    std::unique_ptr<Event> copy_start, copied, gather_start, gathered;
    ReadTimes read;
    bool copies = false;  // those events are of this number: a shard that is gathered later has two
    bool gathers = false;
  };
  struct Slot {
    std::byte* data = nullptr;
    std::unique_ptr<Event> consumed;  // recorded on the compute stream
  };
  State(Device& dev, Communicator* comm, int own_rank, std::vector<const PartitionLayout*> lay,
        std::vector<ShardStore*> sto, int slot_count, Stream& gather_stream, Buffer slot_memory,
        bool own);
  ~State();

  void check() const;
  TripEvents& events_of(Number number) { return ring[number % ring.size()]; }
  Event& ready(Number number) {
    TripEvents& events = events_of(number);
    return events.gathers ? *events.gathered : *events.copied;
  }
  const PartitionLayout& layout(int unit) const { return *layouts[static_cast<std::size_t>(unit)]; }
  ShardStore& store(int unit) const { return *stores[static_cast<std::size_t>(unit)]; }

  /// This rank's place in a slot.
  std::size_t place(int unit) const {
    return only_own ? 0 : static_cast<std::size_t>(rank) * layout(unit).shard_bytes();
  }
  Slot& slot_of(const Trip& trip) { return slots[static_cast<std::size_t>(trip.slot)]; }
  const Slot& slot_of(const Trip& trip) const { return slots[static_cast<std::size_t>(trip.slot)]; }
  UnitWeights weights(int unit) const;

  void start_read(Trip& trip);
  void start_reads();
  void fetch_ahead();
  void fetch(Trip& trip);
  void copy(Trip& trip);
  /// What is read from storage is copied beside what was enqueued before it, not behind.
  Stream& copies_of(const Trip& trip) {
    return read_copies && store(trip.unit).tier() == Tier::kNvme ? *read_copies : *copies;
  }
  void gather(Trip& trip);
  void run(int unit, const UnitWeights& weights,
           const std::function<void(int, const UnitWeights&)>& body, Stream& compute);
  UnitTimes times_of(int unit, const UnitTimer::Events& events, const DeviceClock& clock) const;
  void add_trip_times(Number number, UnitTimes& times, const DeviceClock& clock) const;
  void collect_times();

  Device& device;
  Communicator* communicator;
  int rank;
  int world = 1;
  std::vector<const PartitionLayout*> layouts;
  std::vector<ShardStore*> stores;
  bool only_own;  // no pass gathers
  Stream& gathers;
  Buffer memory;
  std::vector<Slot> slots;
  std::vector<TripEvents> ring;

  std::optional<TripQueue> queue;
  bool staying = false;  // the pass that runs
  Number brought = 0;
  Number collected = 0;  // times below this one are in the statistics, or lost
  bool failed = false;
  FetchStats stats;
  UnitTimer timer;

  // Last: their destructors wait for work on all of the above.
  std::unique_ptr<Stream> copies, read_copies;
};

LayerFetcher::State::State(Device& dev, Communicator* comm, int own_rank,
                           std::vector<const PartitionLayout*> lay, std::vector<ShardStore*> sto,
                           int slot_count, Stream& gather_stream, Buffer slot_memory, bool own)
    : device(dev),
      communicator(comm),
      rank(own_rank),
      layouts(std::move(lay)),
      stores(std::move(sto)),
      only_own(own),
      gathers(gather_stream) {
  check();
  world = layouts.empty() ? 1 : layouts.front()->world();
  std::vector<Tier> tiers;
  for (const ShardStore* store : stores) tiers.push_back(store->tier());
  copies = device.make_stream("copies");
  const std::size_t bytes = slots_bytes(layouts, tiers, slot_count, only_own);
  const bool nvme_slot = has_nvme_slot(layouts, tiers, only_own);
  if (nvme_slot) read_copies = device.make_stream("read copies");
  queue.emplace(std::move(tiers), bytes == 0 ? 0 : static_cast<std::size_t>(slot_count),
                world > 1 && !only_own, nvme_slot);
  if (bytes == 0) return;
  memory = std::move(slot_memory);
  if (memory.bytes() == 0) memory = device.allocate(bytes);
  if (memory.bytes() < bytes)
    throw Error("the layer fetcher was given too little memory for slots");
  const auto count = static_cast<std::size_t>(slot_count) + (nvme_slot ? 1 : 0);
  for (std::size_t s = 0; s < count; ++s) {
    slots.push_back({memory.data() + s * (bytes / count), device.make_event()});
  }
  // A caller that waits for the device between passes has at most one pass and the slots fetched
  // ahead in flight, and may ask for the times of the pass before. What was fetched ahead may be
  // gathered later.
  ring.resize(2 * (layouts.size() + count));
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
  if (read_copies) settle(*read_copies);
  if (brought != 0 && world > 1) settle(gathers);
  for (Slot& slot : slots) settle(*slot.consumed);
}

UnitWeights LayerFetcher::State::weights(int unit) const {
  const int only = staying ? rank : -1;
  if (!queue->is_turn_of(unit)) return {&layout(unit), store(unit).resident(unit), only};
  return {&layout(unit), slot_of(queue->front()).data + (staying ? place(unit) : 0), only};
}

void LayerFetcher::State::start_read(Trip& trip) {
  if (!trip.read_started) store(trip.unit).start_read(trip.unit);
  trip.read_started = true;
}

/// Stores take what their staging has room for.
void LayerFetcher::State::start_reads() {
  while (Trip* const trip = queue->next_read()) start_read(*trip);
}

/// Fetches into every slot that is free or whose compute is enqueued, but only while the host need
/// not wait for storage: enqueueing compute comes first.
void LayerFetcher::State::fetch_ahead() {
  for (Trip* trip = queue->next(); trip != nullptr; trip = queue->next()) {
    if (trip->slot < 0 && store(trip->unit).tier() == Tier::kNvme) return;
    fetch(*trip);
  }
}

void LayerFetcher::State::fetch(Trip& trip) {
  collect_times();
  // What leaves the ring untimed would be timed with its successor's events.
  if (brought >= ring.size()) collected = std::max<Number>(collected, brought - ring.size() + 1);
  if (timer.on()) device.mark_begin(fmt::format("fetch unit {}", trip.unit));
  TripEvents& events = events_of(brought);
  events.copies = trip.slot < 0;
  events.gathers = trip.gathers;
  events.read = {};
  // A shard that rests on the device is copied to its place in the slot as well, while the gather
  // before is running. A gather in place then need not move it; copy engines would do that one
  // after the other.
  if (events.copies) {
    trip.number = brought;
    copy(trip);
  }
  if (trip.gathers) {
    gathers.wait(*events_of(trip.number).copied);
    trip.number = brought;
    gather(trip);
  }
  if (timer.on()) device.mark_end();
  ++brought;
  start_reads();
}

void LayerFetcher::State::copy(Trip& trip) {
  queue->take_slot(trip);
  const Slot& slot = slot_of(trip);
  const std::size_t bytes = layout(trip.unit).shard_bytes();
  ShardStore& from = store(trip.unit);
  start_read(trip);
  TripEvents& events = events_of(trip.number);
  Stream& stream = copies_of(trip);
  stream.wait(*slot.consumed);
  stream.record(*events.copy_start);
  from.finish_read(trip.unit, slot.data + place(trip.unit), stream);
  if (from.tier() == Tier::kNvme) {
    stats.bytes[Link::kRead] += bytes;
    events.read = from.last_read();
  }
  if (from.tier() != Tier::kDevice) stats.bytes[Link::kCopy] += bytes;
  stream.record(*events.copied);
}

void LayerFetcher::State::gather(Trip& trip) {
  const std::size_t bytes = layout(trip.unit).shard_bytes();
  TripEvents& events = events_of(trip.number);
  gathers.record(*events.gather_start);
  std::byte* const slot = slot_of(trip).data;
  communicator->all_gather(slot + place(trip.unit), slot, bytes, gathers);
  gathers.record(*events.gathered);
  trip.gathered = true;
  stats.bytes[Link::kGather] += bytes * static_cast<std::size_t>(world - 1);
}

void LayerFetcher::State::collect_times() {
  for (; collected < brought; ++collected) {
    TripEvents& events = events_of(collected);
    if (!ready(collected).reached()) return;
    if (events.gathers) {
      stats.gather_seconds += device.elapsed_seconds(*events.gather_start, *events.gathered);
    }
  }
}

void LayerFetcher::State::run(int unit, const UnitWeights& weights,
                              const std::function<void(int, const UnitWeights&)>& body,
                              Stream& compute) {
  const bool travelled = queue->is_turn_of(unit);
  const bool idle = queue->trips_of_a_pass() == 0 && !travelled && !body;
  UnitTimer::Events* const events = idle ? nullptr : timer.events(unit);
  if (events != nullptr)
    events->trip = travelled ? std::optional(queue->front().number) : std::nullopt;
  if (travelled) {
    if (events != nullptr) compute.record(*events->wait_start);
    compute.wait(ready(queue->front().number));
  }
  if (events != nullptr) compute.record(*events->start);
  // Also when the body throws: what it enqueued before still reads the slot.
  try {
    if (body) body(unit, weights);
  } catch (...) {
    if (travelled) compute.record(*slot_of(queue->front()).consumed);
    throw;
  }
  if (events != nullptr) compute.record(*events->end);
  if (!travelled) return;
  compute.record(*slot_of(queue->front()).consumed);
  queue->consume();
}

UnitTimes LayerFetcher::State::times_of(int unit, const UnitTimer::Events& events,
                                        const DeviceClock& clock) const {
  UnitTimes times;
  times.unit = unit;
  times.tier = store(unit).tier();
  times.compute = clock.interval(*events.start, *events.end);
  if (events.trip) {
    times.wait = clock.interval(*events.wait_start, *events.start);
    add_trip_times(*events.trip, times, clock);
  }
  return times;
}

void LayerFetcher::State::add_trip_times(Number number, UnitTimes& times,
                                         const DeviceClock& clock) const {
  const TripEvents& events = ring[number % ring.size()];
  times.moved[Link::kRead] = {events.read.begin, events.read.end};
  if (events.copies) {
    Interval& copy = times.moved[Link::kCopy];
    copy = clock.interval(*events.copy_start, *events.copied);
    // The stream's wait is enqueued where the copies are, as storage delivers them.
    copy.begin = std::clamp(events.read.taken, copy.begin, copy.end);
  }
  if (events.gathers) {
    times.moved[Link::kGather] = clock.interval(*events.gather_start, *events.gathered);
  }
}

LayerFetcher::LayerFetcher(Device& device, Communicator* communicator, int rank,
                           std::vector<const PartitionLayout*> layouts,
                           std::vector<ShardStore*> stores, int slot_count, Stream& gathers,
                           Buffer slots, bool only_own)
    : state_(std::make_unique<State>(device, communicator, rank, std::move(layouts),
                                     std::move(stores), slot_count, gathers, std::move(slots),
                                     only_own)) {}

LayerFetcher::~LayerFetcher() = default;

bool LayerFetcher::has_nvme_slot(const std::vector<const PartitionLayout*>& layouts,
                                 const std::vector<Tier>& tiers, bool only_own) {
  bool read = false, other = false;
  for (std::size_t u = 0; u < layouts.size(); ++u) {
    read = read || tiers.at(u) == Tier::kNvme;
    other = other || (tiers.at(u) != Tier::kNvme && travels(*layouts[u], tiers.at(u), only_own));
  }
  return read && other;
}

std::size_t LayerFetcher::slots_bytes(const std::vector<const PartitionLayout*>& layouts,
                                      const std::vector<Tier>& tiers, int slot_count,
                                      bool only_own) {
  if (slot_count < 2) {
    throw ConfigError(fmt::format(
        "{} slots are too few: one unit computes while the next travels, which takes 2 at least",
        slot_count));
  }
  std::size_t largest = 0;
  for (std::size_t u = 0; u < layouts.size(); ++u) {
    if (!travels(*layouts[u], tiers.at(u), only_own)) continue;
    largest =
        std::max(largest, only_own ? layouts[u]->shard_bytes() : layouts[u]->gathered_bytes());
  }
  const int count = slot_count + (has_nvme_slot(layouts, tiers, only_own) ? 1 : 0);
  return align_up(largest, kPageBytes) * static_cast<std::size_t>(count);
}

void LayerFetcher::run_pass(const std::function<void(int unit, const UnitWeights& weights)>& body,
                            Stream& compute, bool last, const std::function<void()>& after_units,
                            bool stays) {
  State& s = *state_;
  if (s.failed) throw Error("an earlier pass failed; the layer fetcher cannot continue");
  if (s.only_own && s.world > 1 && !stays) {
    throw Error("the slots of the layer fetcher hold no gathered unit");
  }
  s.failed = true;  // until the end is reached
  s.timer.begin_pass();
  s.staying = stays;
  s.queue->plan_pass(s.world > 1 && !stays, last);
  s.start_reads();
  s.fetch_ahead();
  for (int unit = 0; unit < static_cast<int>(s.layouts.size()); ++unit) {
    // Waits for storage at most, with all earlier bodies enqueued.
    while (s.queue->is_turn_of(unit) && !s.queue->front().complete()) s.fetch(s.queue->front());
    s.run(unit, s.weights(unit), body, compute);
    if (unit + 1 == static_cast<int>(s.layouts.size()) && after_units) after_units();
    s.start_reads();
    s.fetch_ahead();
  }
  ++s.stats.passes;
  if (stays) ++s.stats.staying;
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
  for (std::size_t u = 0; u < timed.units.size(); ++u) {
    all.push_back(s.times_of(static_cast<int>(u), timed.units[u], clock));
  }
  return all;
}

bool LayerFetcher::all_resident() const { return state_->slots.empty(); }

UnitWeights LayerFetcher::resident_weights(int unit) const {
  const State& s = *state_;
  if (s.world > 1 || s.store(unit).tier() != Tier::kDevice) {
    throw Error(fmt::format("unit {} is in a slot only during its turn", unit));
  }
  return {&s.layout(unit), s.store(unit).resident(unit)};
}

const PerLink<std::size_t>& LayerFetcher::moved() const { return state_->stats.bytes; }

FetchStats LayerFetcher::take_stats() {
  state_->collect_times();
  return std::exchange(state_->stats, {});
}

}  // namespace zi
