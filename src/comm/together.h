#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "zero_infer/rank_group.h"

namespace zi {

/// How a step ended on all ranks; the same on each.
struct Together {
  int failed_rank = -1;  // the lowest one where it threw
  std::string text;      // of what it threw

  bool ok() const { return failed_rank < 0; }
  /// Collective: throws CommError with the text on the rank that failed and PeerError on all others
  /// (RankGroup::all_or_none); returns when nothing failed.
  void check(RankGroup& ranks) const;
};

/// Collective, main thread. Runs a step of a foreign collective library that may block until all
/// ranks are in it, and returns when it has ended on every rank. Where it throws on some ranks, the
/// others may stay inside forever: after `grace` the lowest rank that failed calls `on_failure` and
/// aborts the job. The step runs on a thread of its own (its current GPU is to be set there) and
/// must not use the World.
Together run_together(RankGroup& ranks, const std::function<void()>& step,
                      const std::function<void(const std::string&)>& on_failure,
                      std::chrono::milliseconds grace = std::chrono::seconds(10));

}  // namespace zi
