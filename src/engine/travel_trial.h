#pragma once

#include <cstdint>
#include <span>
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
  double gathered = 0;  // seconds, with the gather of the next one
  double staying = 0;   // with the exchanges of its products
};

/// The most rows of a rank for which weights are better left where they are, of at most `most`; 0:
/// none. Between two measured row counts, times are on a straight line. `times`: by ascending rows.
std::int64_t rows_to_stay(std::span<const TravelTimes> times, std::int64_t most);

/// Collective over the partition, the same on every rank: passes over a few blocks both ways, by a
/// layer fetcher, with more and more rows until weights are better gathered. `slots` is the
/// communicator's memory of plan.slots; what it holds is lost. `peers`: those of the passes, or
/// null. Takes some of the memory that passes take, and gives it back. Attention is left out, which
/// is the same either way, and so are reads and copies of shards.
std::vector<TravelTimes> measure_travel(RankGroup& partition, Backend& backend, const Model& model,
                                        const MemoryPlan& plan, const ModelWeights& weights,
                                        Buffer& slots, PeerExchange* peers);

}  // namespace zi
