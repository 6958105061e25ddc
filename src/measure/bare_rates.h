#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "zero_infer/communicator.h"
#include "zero_infer/device.h"
#include "zero_infer/ops.h"
#include "zero_infer/rank_group.h"

namespace zi {

/// How often a step is timed, after one time to warm up: as often as fits into `seconds` by what
/// the slowest rank's warm-up took, within the two bounds. An idle GPU takes some 50 ms to come to
/// its full clocks: short steps are repeated for longer than that.
struct Repeats {
  int least = 5;
  int most = 50;
  double seconds = 0.25;
};

/// What the repeats of a step gave, in bytes (or whatever was counted) per second.
struct BareRate {
  double own = 0;      // this rank in its best repeat; 0 where it had no part
  double slowest = 0;  // the slowest rank in the best repeat; the same on all ranks
};

/// Collective: the largest of the ranks' values.
double largest_of(RankGroup& ranks, double mine);

/// Seconds that `work` takes, by the host's clock.
double wall_seconds(const std::function<void()>& work);

/// Seconds between the start and the end, on the stream, of what `enqueue` enqueues there; waits
/// for it.
double stream_seconds(Device& device, Stream& stream, const std::function<void()>& enqueue);

/// Collective. The rate of a step that moves `amount` on each rank and returns the seconds that it
/// took, 0 on a rank that has no part in it. The ranks start each repeat together and make equally
/// many, since the step may be collective.
BareRate bare_rate(RankGroup& ranks, double amount, const Repeats& repeats,
                   const std::function<double()>& timed_step);

/// Collective. A copy of `bytes` (far beyond any cache) within device memory: read plus written,
/// the best of several places for the two buffers, which are allocated for it (at most twice
/// `bytes` and 16 MiB). Throws on all ranks or none when there is no room.
BareRate memory_copy_rate(RankGroup& ranks, Device& device, std::size_t bytes, Stream& stream,
                          const Repeats& repeats);

/// Collective. All-gathers in place of `shard` bytes a rank, `count` of them back to back, into as
/// many places of `memory` (the communicator's, of one gather at least) as there are, in turn, so
/// that caches do not hold it all: received from the other ranks.
BareRate gather_rate(RankGroup& ranks, Device& device, Communicator& communicator,
                     std::span<std::byte> memory, std::size_t shard, std::size_t count,
                     Stream& stream, const Repeats& repeats);

/// Collective. Products of `rows` rows of random values of type `dtype` with each of the matrices,
/// one after the other: bytes of weights. Together they should be far beyond any cache. Throws on
/// all ranks or none when there is no room for input and output.
BareRate product_rate(RankGroup& ranks, Device& device, Ops& ops,
                      std::span<const RowBlockMatrix> matrices, DType dtype, std::int64_t rows,
                      Stream& stream, const Repeats& repeats);

}  // namespace zi
