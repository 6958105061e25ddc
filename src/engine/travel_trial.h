#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/backend_choice.h"
#include "engine/memory_plan.h"
#include "engine/model_weights.h"
#include "zero_infer/model.h"
#include "zero_infer/rank_group.h"

namespace zi {

/// What a block takes either way, on the slowest rank, when each rank has `rows` rows.
struct TravelTimes {
  std::int64_t rows = 0;
  double gathered = 0;  // seconds, with the gather of the next one where it is not replicated
  double staying = 0;   // with the exchanges of its products
};

/// The most rows of a rank for which weights are better left where they are, of at most `most`; 0:
/// none. Between two measured row counts, times are on a straight line, and beyond the last one on
/// the line through the last two. `times`: by ascending rows.
std::int64_t rows_to_stay(std::span<const TravelTimes> times, std::int64_t most);

/// One way, measured.
struct TrialTime {
  double block = 0;  // seconds of a block
  double spent = 0;  // on this measurement
};
/// Of passes with `rows` rows a rank, in which weights stay or are gathered.
using MeasureTravel = std::function<TrialTime(std::int64_t rows, bool stay)>;

/// Passes that are timed after one that took `first` seconds: as many as fit in a tenth of a
/// second, but `fewest` at least, or one less where the first took half a second. Where there is
/// none, the first one counts.
int trial_repeats(double first, int fewest);

/// Measures both ways with more and more rows, until weights are better gathered, or rows reach
/// `most`, or half a second is spent; with two row counts at least where one does not decide. What
/// says that gathering is better is measured again: other work of the machine may have said it.
/// Alike on all ranks where `measure` is.
std::vector<TravelTimes> measure_travel(std::int64_t most, const MeasureTravel& measure);

/// Collective over the partition, the same on every rank: passes over a few blocks, by a layer
/// fetcher. `slots` is the communicator's memory of plan.slots; what it holds is lost. `peers`:
/// those of the passes, or null. Takes some of the memory that passes take, and gives it back.
///
/// Left out is what both ways have alike: attention, and the reads and copies of shards. Whatever
/// tier a shard rests in, its rank fetches it once in a pass of either kind, ahead of its turn. If
/// this takes longer than all else, either way does and the choice is free; if not, it is hidden.
/// On the CPU backend, where copies take from the same memory, they add as much to both. A share of
/// the host, which only passes that stay have, makes these faster than they are here.
std::vector<TravelTimes> measure_travel(RankGroup& partition, Backend& backend, const Model& model,
                                        const MemoryPlan& plan, const ModelWeights& weights,
                                        Buffer& slots, PeerExchange* peers);

/// A block of passes that gather, of which `replicated` of `blocks` need no gather: these take
/// `computed` seconds. `gathered`: a block's of passes that gather all, the gather beside the
/// compute of the block before. The slower of the two is what passes wait for.
double block_seconds(double gathered, double computed, std::int64_t replicated,
                     std::int64_t blocks);

/// For people: what was decided, and from what. `replicated`: see MemoryPlan.
std::string describe(std::span<const TravelTimes> times, std::int64_t stay_rows,
                     const std::vector<bool>& replicated, double seconds);

}  // namespace zi
