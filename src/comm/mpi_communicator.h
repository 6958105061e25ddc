#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "zero_infer/communicator.h"
#include "zero_infer/rank_group.h"
#include "zero_infer/rank_hosts.h"

namespace zi {

/// Collectives of the CPU backend: device memory is host memory, so MPI moves it. Each call becomes
/// one task of the CpuStream and is done when the task is; other streams' order comes from events
/// as for any other work. Uses MPI from the stream's thread (thread level MULTIPLE). Throws Error
/// for a stream that is no CpuStream.
///
/// Where some of several hosts has more than one rank, an all-gather takes each block to a host
/// once: see HostGather.
class MpiCommunicator final : public Communicator {
 public:
  /// MPI counts are ints, so a rank's block travels in pieces of at most this size.
  static const std::size_t kPieceBytes;

  /// Collective over the group: takes a communicator of its own, which lives until the last
  /// enqueued call is done. MPI must be initialised and outlive that. `hosts`: the group's, or what
  /// a test pretends; the same on every rank. Tests pass a small `piece_bytes`.
  MpiCommunicator(RankGroup& ranks, const RankHosts& hosts, std::size_t piece_bytes = kPieceBytes);
  ~MpiCommunicator() override;

  void all_gather(const void* send, void* recv, std::size_t bytes, Stream& stream) override;
  void all_to_all(const void* send, void* recv, std::size_t bytes, Stream& stream) override;
  /// Of the calls whose tasks are done, as they were received.
  std::uint64_t network_bytes() const override;

 private:
  struct State;
  std::shared_ptr<State> state_;  // shared with the enqueued tasks
};

}  // namespace zi
