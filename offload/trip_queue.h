#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "offload/shard_store.h"

namespace zi {

/// One unit's way into a slot: this rank's shard alone, or gathered. Of a shard that rests on the
/// host, only those rows of each matrix travel that the host's cores do not multiply.
struct Trip {
  int unit = 0;
  bool gathers = false;   // wanted, or done
  double host_share = 0;  // of the rows, at most: see PartitionLayout::host_rows
  double share_left = 1;  // on the host by its copies
  bool read_started = false;
  int slot = -1;  // from its copy on
  bool gathered = false;
  std::uint64_t number = 0;  // of the events of what was done last

  bool copied() const { return slot >= 0 && share_left <= host_share; }
  bool complete() const { return copied() && (gathered || !gathers); }
};

/// The trips of a pass and of the next one, in the order in which reads start, shards are fetched,
/// gathers are enqueued and slots are consumed, on every rank alike. A pass gathers all units
/// that do not rest gathered, or none; the next one is guessed to be of the same kind. Where it is
/// not, what was fetched stays where it is: an own shard lies in its rank's place of the slot, so
/// it is gathered there, and a gathered unit holds the own shard. The same holds of the host's
/// share: where the pass wants less of it, the rows that are missing follow; where it wants more,
/// they are there already.
class TripQueue {
 public:
  /// For units of these tiers and so many slots. `mixed`: passes of both kinds may come.
  /// `nvme_slot`: there is one more slot, number `slots`, for units on NVMe alone. `replicated`: of
  /// each unit, whether it rests gathered and so makes no trip; empty: none does.
  TripQueue(std::vector<Tier> tiers, std::size_t slots, bool mixed, bool nvme_slot = false,
            std::vector<bool> replicated = {});

  /// Begins a pass that gathers all units that do not rest gathered, or one that needs own shards
  /// of those that do not rest on the device; then `host_share` of the rows of those that rest on
  /// the host stay there. `last`: no other pass follows.
  void plan_pass(bool gathers, bool last, double host_share = 0);
  /// Trips of a pass of this kind.
  std::size_t trips_of_a_pass() const { return trips_of_a_pass_; }

  /// Whether the first trip is this unit's: all units before it had their turn.
  bool is_turn_of(int unit) const { return !trips_.empty() && trips_.front().unit == unit; }
  Trip& front() { return trips_.front(); }
  const Trip& front() const { return trips_.front(); }
  /// After the front trip was used: its slot is free for the trip after those that are free.
  void consume();

  /// The first trip that is not complete, if it may be fetched now and has or can have a slot; else
  /// null.
  Trip* next();
  /// Gives the trip a slot. Throws Error where none is free.
  void take_slot(Trip& trip);
  /// The first trip whose read should be started: reads run ahead until each unit is under way
  /// once. Null: none.
  Trip* next_read();

 private:
  bool on_nvme(const Trip& trip) const {
    return tiers_[static_cast<std::size_t>(trip.unit)] == Tier::kNvme;
  }
  bool has_slot_for(const Trip& trip) const {
    return !free_.empty() || (nvme_slot_free_ && on_nvme(trip));
  }
  /// Whether a pass of that kind uses the unit where it rests.
  bool rests(int unit, bool gathers) const {
    const auto u = static_cast<std::size_t>(unit);
    return gathers ? !replicated_.empty() && replicated_[u] : tiers_[u] == Tier::kDevice;
  }
  std::size_t complete_ahead() const;  // trips in front of the first that is not complete

  std::vector<Tier> tiers_;
  std::vector<bool> replicated_;
  std::size_t slots_;
  bool mixed_;
  std::deque<int> free_;  // the one that was consumed first in front
  bool nvme_slot_free_;   // false where there is none
  std::deque<Trip> trips_;
  std::size_t allowed_ = 0;  // so many may be fetched now
  std::size_t trips_of_a_pass_ = 0;
};

}  // namespace zi
