#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "offload/fetch_stats.h"
#include "offload/shard_store.h"
#include "offload/trip_queue.h"
#include "offload/unit_times.h"
#include "offload/unit_weights.h"
#include "zero_infer/communicator.h"
#include "zero_infer/device.h"
#include "zero_infer/partition_layout.h"

namespace zi {

/// The units that travel, and where their shards rest: `layouts[u]` and `stores[u]` for every unit.
struct TripUnits {
  std::vector<const PartitionLayout*> layouts;
  std::vector<ShardStore*> stores;
  int rank = 0;
  bool only_own = false;  // no trip gathers: slots hold this rank's shards alone

  const PartitionLayout& layout(int unit) const { return *layouts[static_cast<std::size_t>(unit)]; }
  ShardStore& store(int unit) const { return *stores[static_cast<std::size_t>(unit)]; }
  int world() const { return layouts.empty() ? 1 : layouts.front()->world(); }
  std::vector<Tier> tiers() const;
  /// Of each unit, whether it rests gathered.
  std::vector<bool> replicated() const;
  /// Whether a pass of that kind uses the unit where it rests.
  bool rests(int unit, bool stays) const;
  /// The weights of a unit that rests.
  UnitWeights resting(int unit, bool stays) const;
  /// Throws Error where they contradict each other.
  void check() const;
};

/// Makes the trips of a TripQueue: shards are copied into slots, and gathered there, each on a
/// stream of its own; events order these streams and the one that computes. Does not wait for the
/// device. For one host thread.
class TripRunner {
 public:
  /// As LayerFetcher's, whose slots these are.
  TripRunner(Device& device, Communicator* communicator, TripUnits units, int slot_count,
             Stream& gathers, Buffer slots);
  /// Waits for copies, gathers and compute in flight.
  ~TripRunner();

  /// See LayerFetcher.
  static bool has_nvme_slot(const std::vector<const PartitionLayout*>& layouts,
                            const std::vector<Tier>& tiers, bool only_own,
                            const std::vector<bool>& replicated);
  static std::size_t slots_bytes(const std::vector<const PartitionLayout*>& layouts,
                                 const std::vector<Tier>& tiers, int slot_count, bool only_own,
                                 const std::vector<bool>& replicated);

  const TripUnits& units() const { return units_; }
  /// All of them; the last one may be for units on NVMe alone.
  std::size_t slots() const { return slots_.size(); }
  bool nvme_slot() const { return read_copies_ != nullptr; }

  void start_read(Trip& trip);
  /// Enqueues what the trip, the first of the queue that is not complete, still lacks.
  void fetch(Trip& trip, TripQueue& queue);

  /// What a complete trip brought; `stays`: this rank's shard alone.
  UnitWeights weights(const Trip& trip, bool stays) const;
  /// `compute` waits until they are there.
  void await(const Trip& trip, Stream& compute);
  /// The slot may be used again when what `compute` holds so far is done.
  void release(const Trip& trip, Stream& compute);

  /// Of a trip by its last number, while its events are not used again.
  void add_times(std::uint64_t number, UnitTimes& times, const DeviceClock& clock) const;
  void collect_times();
  FetchStats& stats() { return stats_; }
  /// Marks each fetch for profilers.
  void mark_fetches(bool on) { marks_ = on; }

 private:
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

  TripEvents& events_of(Number number) { return ring_[number % ring_.size()]; }
  Event& ready(Number number);
  /// This rank's place in a slot.
  std::size_t place(int unit) const;
  Slot& slot_of(const Trip& trip) { return slots_[static_cast<std::size_t>(trip.slot)]; }
  const Slot& slot_of(const Trip& trip) const {
    return slots_[static_cast<std::size_t>(trip.slot)];
  }
  /// What is read from storage is copied beside what was enqueued before it, not behind.
  Stream& copies_of(const Trip& trip) {
    const bool read = units_.store(trip.unit).tier() == Tier::kNvme;
    return read_copies_ && read ? *read_copies_ : *copies_;
  }
  void copy(Trip& trip, TripQueue& queue);
  void copy_shard(Trip& trip, std::byte* to);
  void copy_rows(Trip& trip, std::byte* to);
  void gather(Trip& trip);

  Device* device_;
  Communicator* communicator_;
  TripUnits units_;
  int world_;
  Stream* gathers_;
  Buffer memory_;
  std::vector<Slot> slots_;
  std::vector<TripEvents> ring_;
  Number brought_ = 0;
  Number collected_ = 0;  // times below this one are in the statistics, or lost
  FetchStats stats_;
  bool marks_ = false;

  // Last: their destructors wait for work on all of the above.
  std::unique_ptr<Stream> copies_, read_copies_;
};

}  // namespace zi
