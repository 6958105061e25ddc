#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/output.h"
#include "engine/prefix_router.h"
#include "text/prompt_source.h"
#include "zero_infer/world.h"

namespace zi {

/// Prompts that ended without a result.
struct FailedPrompts {
  std::int64_t refused = 0;     // could not be used: too long, ids out of range
  std::int64_t not_finite = 0;  // the model gave NaN or infinity for them
  std::int64_t all() const { return refused + not_finite; }
};

/// The once-a-pass control exchange, over the whole job: who still works, who wants prompts, what
/// was finished, and whether to stop. Because every rank sees the same reports, all leave together
/// and nobody waits in a gather for a rank that is gone.
class WorkExchange {
 public:
  struct Report {
    RankStatus status;
    std::int64_t free_lanes() const { return status.lanes - status.active; }
    bool ending = false;      // the next pass is the last one of all active ones
    FailedPrompts failed;     // so far on this rank
    std::int32_t signal = 0;  // a stop signal was received
  };
  struct Turn {
    std::vector<Prompt> prompts;           // for this rank's lanes
    std::vector<std::uint64_t> cancelled;  // of any rank: nobody wants their results any more
    std::int64_t most_active = 0;          // the largest number of busy lanes of any rank
    bool last = false;                     // no pass will follow
    bool run = false;                      // somebody works: run a pass
    bool leave = false;                    // all leave
    std::int32_t signal = 0;               // the signal that some rank received
    FailedPrompts failed;                  // of all ranks
  };

  /// `source` and `sink` are used on rank 0 and may be null elsewhere; `remembered_blocks` is for
  /// its PrefixRouter.
  WorkExchange(World& world, RankGroup& partition, PromptSource* source, OutputSink* sink,
               std::int64_t remembered_blocks)
      : world_(&world),
        partition_(&partition),
        source_(source),
        sink_(sink),
        router_(static_cast<std::size_t>(world.size()), remembered_blocks) {}

  /// Collective. Sends `outbox` (events) to rank 0's sink and fetches work from its source.
  Turn take_turn(const Report& report, std::string_view outbox);

  /// What the ranks of a partition tell each other of the pass that they are about to run.
  struct Rows {
    std::vector<std::int32_t> ids;  // (ranks, most): of each one's rows, filled up with kNoId
    std::int64_t most_samples = 0;  // the largest number of samples of any rank
    std::int64_t most = 0;          // and of rows; 0: none of them has any
  };
  /// Collective over the partition. `ids`: of this rank's rows. It takes one exchange if no rank
  /// has more rows than `expected`, which is the same on every rank, else two.
  Rows share_rows(std::vector<std::int32_t> ids, std::int64_t samples, std::int64_t expected);

 private:
  struct Wire {
    Report report;
    std::uint64_t outbox_bytes = 0;
    std::int32_t open = 0;       // rank 0: the source can still give prompts
    std::int32_t cancelled = 0;  // rank 0: how many of its prompts nobody wants any more
  };
  void deliver(std::string_view outbox);
  /// Rank 0's list on every rank.
  std::vector<std::uint64_t> share(const std::vector<std::uint64_t>& cancelled) const;
  /// On rank 0: the prompts for each rank, as the router chooses.
  std::vector<std::string> deal(const std::vector<Wire>& ranks);

  World* world_;
  RankGroup* partition_;
  PromptSource* source_;
  OutputSink* sink_;
  PrefixRouter router_;
};

}  // namespace zi
