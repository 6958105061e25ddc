#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "offload/fetch_stats.h"
#include "offload/shard_store.h"
#include "offload/unit_times.h"
#include "offload/unit_weights.h"
#include "zero_infer/communicator.h"
#include "zero_infer/device.h"
#include "zero_infer/partition_layout.h"

namespace zi {

/// Brings each unit together just before it runs. Walks the units in order and keeps the next ones
/// in flight (read -> copy -> gather, each on a stream of its own, ordered by events), across the
/// end of a pass as well: the first units of the next pass travel while the last one of this pass
/// computes. Units that rest on the device as a pass needs them are used in place and need no slot:
/// with a world of one those of the device tier, and else those that every rank holds gathered.
/// Where units on NVMe travel between others, they have a slot and a stream of copies to
/// themselves: storage is read while the units before them are still copied.
///
/// In a pass in which weights stay, nothing is gathered: the body gets this rank's shard, of units
/// of the device tier where it rests.
class LayerFetcher {
 public:
  /// `layouts[u]` and `stores[u]` (the store of the unit's tier) for every unit; slots are
  /// `slot_count` (>= 2) device buffers of the largest gathered unit. All outlive the fetcher. A
  /// unit's tier must be the same on every rank: it decides how far ahead gathers are enqueued, and
  /// with that their order among other calls on `gathers`. `communicator` may be null for a world
  /// of one. `gathers` is the stream of the communicator's calls. `slots` is a buffer of
  /// slots_bytes, preferably from the communicator; without one, the fetcher allocates it from the
  /// device. `only_own`: weights stay in every pass, so that slots hold this rank's shards alone.
  LayerFetcher(Device& device, Communicator* communicator, int rank,
               std::vector<const PartitionLayout*> layouts, std::vector<ShardStore*> stores,
               int slot_count, Stream& gathers, Buffer slots = {}, bool only_own = false);
  /// Waits for copies, gathers and compute in flight. Shards used in place belong to the stores:
  /// the caller waits for `compute` before it destroys those.
  ~LayerFetcher();

  /// Whether units on NVMe travel between others, and so have a slot to themselves. `replicated`:
  /// of each unit, whether every rank holds it gathered; empty: none.
  static bool has_nvme_slot(const std::vector<const PartitionLayout*>& layouts,
                            const std::vector<Tier>& tiers, bool only_own = false,
                            const std::vector<bool>& replicated = {});

  /// Device bytes of `slot_count` slots for these layouts and tiers, and of one more where units on
  /// NVMe travel between others; 0 when none is needed.
  static std::size_t slots_bytes(const std::vector<const PartitionLayout*>& layouts,
                                 const std::vector<Tier>& tiers, int slot_count,
                                 bool only_own = false, const std::vector<bool>& replicated = {});

  /// What kind of pass it is, the first two on every rank alike.
  struct Pass {
    bool last = false;   // no other pass will follow, so nothing more is fetched
    bool stays = false;  // weights stay
    /// Of the rows of each matrix that rests on the host: the body gets such matrices split, and
    /// the rows travel that are not the host's. It may get smaller shares, which were fetched for
    /// another pass. For a world of one, or where weights stay; a rank's own affair.
    double host_share = 0;
  };
  /// Collective. Calls body(unit, weights) for every unit, in order; what body enqueues on
  /// `compute` runs when the weights are there, and the slot is reused when it is done. An idle
  /// rank passes an empty body. Does not wait for the device. `after_units` is called after the
  /// last unit, for what else the pass has to gather. In a world of many at most two units of the
  /// next pass are fetched before it is run, so that what the caller enqueues on `gathers` for it,
  /// before this call, does not wait for more. What a store, the body or `after_units` throws is
  /// rethrown, and later passes are refused.
  void run_pass(const std::function<void(int unit, const UnitWeights& weights)>& body,
                Stream& compute, const Pass& pass, const std::function<void()>& after_units = {});

  /// Whether no unit needs a slot in a pass of that kind: it is what its bodies enqueue.
  bool all_resident(bool stays) const;
  /// What run_pass gives the body of a unit that is used where it rests: for a pass that is
  /// recorded. Throws Error for a unit that travels in a pass of that kind.
  UnitWeights resident_weights(int unit, bool stays) const;

  /// From the next pass on, keeps (or no longer keeps) when each unit was read, copied, gathered
  /// and computed, at the cost of a few events per unit. Passes are numbered from 0 at each call.
  void time_units(bool on);
  /// The times of one of the last two passes, whose work must be done, in the order of the units.
  std::vector<UnitTimes> unit_times(std::uint64_t pass, const DeviceClock& clock) const;

  /// What moved since the last `take_stats`, without the times of gathers.
  const PerLink<std::size_t>& moved() const;
  /// For a summary. Call it when the streams are idle, or accept that the last pass is missing.
  FetchStats take_stats();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace zi
