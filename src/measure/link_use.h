#pragma once

#include <string>
#include <vector>

#include "base/link.h"
#include "engine/engine.h"
#include "measure/run_limits.h"

namespace zi {

/// What a pass moves over one link, on one rank, and what the bare link can do.
struct LinkUse {
  Link link = Link::kProducts;
  std::string what;  // moves over it, for people: `copied from host memory`
  double bytes = 0;  // a pass
  double busy = 0;   // seconds a pass that it was moving; 0: not known
  double limit = 0;  // bytes per second; 0: not measured
};

/// The links that this rank's passes used, those that moved nothing left out.
std::vector<LinkUse> link_uses(const Engine& engine, const FetchStats& fetched, double passes,
                               const RunLimits& limits);

/// Who a row is for, which says how the share of the limit reads, and whether the rate while moving
/// is of interest: `(limit 55.0 GB/s: 93%)`, or as the published benchmark does, ` of 55.0 GB/s
/// possible: 0.93`.
enum class RowOf { kSummary, kBenchmark };

/// A line for people: bytes a pass, the rate over the whole pass, what the bare link can do and the
/// share of it.
std::string link_row(const LinkUse& use, double pass_seconds, RowOf of);

}  // namespace zi
