#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/backend_choice.h"
#include "engine/memory_plan.h"
#include "engine/model_weights.h"
#include "zero_infer/backend.h"
#include "zero_infer/buffer.h"
#include "zero_infer/model.h"

namespace zi {

/// What a block that rests on the host takes, with the host's share that was the best of those
/// tried.
struct ShareTime {
  std::int64_t rows = 1;
  double share = 0;
  double seconds = 0;
  double without = 0;  // seconds with no share
};

/// The share with the least time of a few that are tried. `seconds(share)`: as long as the slower
/// of two takes which work side by side, the link with the other rows and the host with its own.
ShareTime best_share(const std::function<double(double share)>& seconds);

/// Passes over a few blocks of the host tier, with more and more rows until the host is of no use,
/// by a layer fetcher and SplitOps: so the link and the cores are measured while they share the
/// host's memory. Takes some of the memory that passes take, and gives it back; `slots` as in
/// measure_travel. A rank's own affair. Attention and exchanges are left out.
std::vector<ShareTime> measure_host_shares(Backend& backend, HostProducts& host, const Model& model,
                                           const MemoryPlan& plan, const ModelWeights& weights,
                                           int rank, Buffer& slots);

/// A line for people.
std::string describe(std::span<const ShareTime> times);

}  // namespace zi
