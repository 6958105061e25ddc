#include "offload/trip_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

/// Whether a unit needs a slot in some pass.
bool travels(const PartitionLayout& layout, Tier tier, bool only_own, bool replicated) {
  return tier != Tier::kDevice || (layout.world() > 1 && !only_own && !replicated);
}

bool at_or_false(const std::vector<bool>& flags, std::size_t i) {
  return !flags.empty() && flags.at(i);
}

}  // namespace

std::vector<Tier> TripUnits::tiers() const {
  std::vector<Tier> tiers;
  for (const ShardStore* store : stores) tiers.push_back(store->tier());
  return tiers;
}

std::vector<bool> TripUnits::replicated() const {
  std::vector<bool> replicated;
  for (int unit = 0; unit < static_cast<int>(stores.size()); ++unit) {
    replicated.push_back(store(unit).replicated(unit) != nullptr);
  }
  return replicated;
}

bool TripUnits::rests(int unit, bool stays) const {
  if (world() > 1 && !stays) return store(unit).replicated(unit) != nullptr;
  return store(unit).tier() == Tier::kDevice;
}

UnitWeights TripUnits::resting(int unit, bool stays) const {
  const ShardStore& from = store(unit);
  const bool gathered = world() > 1 && !stays;
  return {.layout = &layout(unit),
          .data = gathered ? from.replicated(unit) : from.resident(unit),
          .only_block = stays ? rank : -1};
}

void TripUnits::check() const {
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
  if (rank < 0 || rank >= world())
    throw Error(fmt::format("rank {} is not in a world of {}", rank, world()));
}

TripRunner::TripRunner(Device& device, Communicator* communicator, TripUnits units, int slot_count,
                       Stream& gathers, Buffer slots)
    : device_(&device),
      communicator_(communicator),
      units_(std::move(units)),
      world_(units_.world()),
      gathers_(&gathers) {
  if (world_ > 1 && communicator == nullptr) {
    throw Error(fmt::format("a world of {} needs a communicator", world_));
  }
  copies_ = device.make_stream("copies");
  const std::size_t bytes =
      slots_bytes(units_.layouts, units_.tiers(), slot_count, units_.only_own, units_.replicated());
  if (has_nvme_slot(units_.layouts, units_.tiers(), units_.only_own, units_.replicated())) {
    read_copies_ = device.make_stream_of_own_copies("read copies");
  }
  if (bytes == 0) return;
  memory_ = std::move(slots);
  if (memory_.bytes() == 0) memory_ = device.allocate(bytes);
  if (memory_.bytes() < bytes)
    throw Error("the layer fetcher was given too little memory for slots");
  const auto count = static_cast<std::size_t>(slot_count) + (nvme_slot() ? 1 : 0);
  for (std::size_t s = 0; s < count; ++s) {
    slots_.push_back({memory_.data() + s * (bytes / count), device.make_event()});
  }
  // A caller that waits for the device between passes has at most one pass and the slots fetched
  // ahead in flight, and may ask for the times of the pass before. What was fetched ahead may be
  // completed later.
  ring_.resize(2 * (units_.layouts.size() + count));
  for (TripEvents& events : ring_) {
    events.copy_start = device.make_event();
    events.copied = device.make_event();
    events.gather_start = device.make_event();
    events.gathered = device.make_event();
  }
}

TripRunner::~TripRunner() {
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
  settle(*copies_);
  if (read_copies_) settle(*read_copies_);
  if (brought_ != 0 && world_ > 1) settle(*gathers_);
  for (Slot& slot : slots_) settle(*slot.consumed);
}

bool TripRunner::has_nvme_slot(const std::vector<const PartitionLayout*>& layouts,
                               const std::vector<Tier>& tiers, bool only_own,
                               const std::vector<bool>& replicated) {
  bool read = false, other = false;
  for (std::size_t u = 0; u < layouts.size(); ++u) {
    read = read || tiers.at(u) == Tier::kNvme;
    other = other || (tiers.at(u) != Tier::kNvme &&
                      travels(*layouts[u], tiers.at(u), only_own, at_or_false(replicated, u)));
  }
  return read && other;
}

std::size_t TripRunner::slots_bytes(const std::vector<const PartitionLayout*>& layouts,
                                    const std::vector<Tier>& tiers, int slot_count, bool only_own,
                                    const std::vector<bool>& replicated) {
  if (slot_count < 2) {
    throw ConfigError(fmt::format(
        "{} slots are too few: one unit computes while the next travels, which takes 2 at least",
        slot_count));
  }
  std::size_t largest = 0;
  for (std::size_t u = 0; u < layouts.size(); ++u) {
    if (!travels(*layouts[u], tiers.at(u), only_own, at_or_false(replicated, u))) continue;
    largest =
        std::max(largest, only_own ? layouts[u]->shard_bytes() : layouts[u]->gathered_bytes());
  }
  const int count = slot_count + (has_nvme_slot(layouts, tiers, only_own, replicated) ? 1 : 0);
  return align_up(largest, kPageBytes) * static_cast<std::size_t>(count);
}

Event& TripRunner::ready(Number number) {
  TripEvents& events = events_of(number);
  return events.gathers ? *events.gathered : *events.copied;
}

std::size_t TripRunner::place(int unit) const {
  return units_.only_own
             ? 0
             : static_cast<std::size_t>(units_.rank) * units_.layout(unit).shard_bytes();
}

void TripRunner::start_read(Trip& trip) {
  if (!trip.read_started) units_.store(trip.unit).start_read(trip.unit);
  trip.read_started = true;
}

void TripRunner::fetch(Trip& trip, TripQueue& queue) {
  collect_times();
  // What leaves the ring untimed would be timed with its successor's events.
  if (brought_ >= ring_.size()) {
    collected_ = std::max<Number>(collected_, brought_ - ring_.size() + 1);
  }
  if (marks_) device_->mark_begin(fmt::format("fetch unit {}", trip.unit));
  TripEvents& events = events_of(brought_);
  events.copies = !trip.copied();
  events.gathers = trip.gathers;
  events.read = {};
  // A shard that rests on the device is copied to its place in the slot as well, while the gather
  // before is running. A gather in place then need not move it; copy engines would do that one
  // after the other.
  if (events.copies) {
    trip.number = brought_;
    copy(trip, queue);
  }
  if (trip.gathers) {
    gathers_->wait(*events_of(trip.number).copied);
    trip.number = brought_;
    gather(trip);
  }
  if (marks_) device_->mark_end();
  ++brought_;
}

void TripRunner::copy(Trip& trip, TripQueue& queue) {
  const bool first = trip.slot < 0;
  if (first) queue.take_slot(trip);
  const Slot& slot = slot_of(trip);
  start_read(trip);
  TripEvents& events = events_of(trip.number);
  Stream& stream = copies_of(trip);
  if (first) stream.wait(*slot.consumed);
  stream.record(*events.copy_start);
  std::byte* const to = slot.data + place(trip.unit);
  if (first && trip.host_share == 0) {
    copy_shard(trip, to);
  } else {
    copy_rows(trip, to);
  }
  trip.share_left = trip.host_share;
  stream.record(*events.copied);
}

void TripRunner::copy_shard(Trip& trip, std::byte* to) {
  const std::size_t bytes = units_.layout(trip.unit).shard_bytes();
  ShardStore& from = units_.store(trip.unit);
  from.finish_read(trip.unit, to, copies_of(trip));
  if (from.tier() == Tier::kNvme) {
    stats_.bytes[Link::kRead] += bytes;
    events_of(trip.number).read = from.last_read();
  }
  if (from.tier() != Tier::kDevice) stats_.bytes[Link::kCopy] += bytes;
}

/// Those rows of each matrix that are to be there and are not.
void TripRunner::copy_rows(Trip& trip, std::byte* to) {
  const PartitionLayout& layout = units_.layout(trip.unit);
  const std::byte* const from = units_.store(trip.unit).on_host(trip.unit);
  if (from == nullptr) {
    throw Error(
        fmt::format("unit {} does not rest on the host, which has a share of it", trip.unit));
  }
  for (std::size_t i = 0; i < layout.matrices().size(); ++i) {
    const PartitionLayout::Matrix& matrix = layout.matrices()[i];
    const std::size_t row_bytes = matrix.format.row_bytes(matrix.tensor.shape[1]);
    const auto end_of = [&](double share) {
      const std::int64_t rows = matrix.rows_per_rank - layout.host_rows(i, share);
      return matrix.offset + static_cast<std::size_t>(rows) * row_bytes;
    };
    const std::size_t begin = end_of(trip.share_left);  // at first the host has all of them
    const std::size_t end = end_of(trip.host_share);
    device_->copy(to + begin, from + begin, end - begin, copies_of(trip));
    stats_.bytes[Link::kCopy] += end - begin;
  }
}

void TripRunner::gather(Trip& trip) {
  const std::size_t bytes = units_.layout(trip.unit).shard_bytes();
  TripEvents& events = events_of(trip.number);
  gathers_->record(*events.gather_start);
  std::byte* const slot = slot_of(trip).data;
  communicator_->all_gather(slot + place(trip.unit), slot, bytes, *gathers_);
  gathers_->record(*events.gathered);
  trip.gathered = true;
  stats_.bytes[Link::kGather] += bytes * static_cast<std::size_t>(world_ - 1);
}

UnitWeights TripRunner::weights(const Trip& trip, bool stays) const {
  return {.layout = &units_.layout(trip.unit),
          .data = slot_of(trip).data + (stays ? place(trip.unit) : 0),
          .only_block = stays ? units_.rank : -1,
          .host_share = trip.share_left,
          .host = units_.store(trip.unit).on_host(trip.unit)};
}

void TripRunner::await(const Trip& trip, Stream& compute) { compute.wait(ready(trip.number)); }

void TripRunner::release(const Trip& trip, Stream& compute) {
  compute.record(*slot_of(trip).consumed);
}

void TripRunner::collect_times() {
  for (; collected_ < brought_; ++collected_) {
    TripEvents& events = events_of(collected_);
    if (!ready(collected_).reached()) return;
    if (events.gathers) {
      stats_.gather_seconds += device_->elapsed_seconds(*events.gather_start, *events.gathered);
    }
  }
}

void TripRunner::add_times(Number number, UnitTimes& times, const DeviceClock& clock) const {
  const TripEvents& events = ring_[number % ring_.size()];
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

}  // namespace zi
