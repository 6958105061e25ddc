#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "zero_infer/communicator.h"
#include "zero_infer/nccl.h"

namespace zi {

/// Collectives between GPUs by NCCL, on the streams of the CUDA backend. A thread watches for
/// asynchronous errors of NCCL. Peers that die on this host do not cause one (their memory just
/// stays silent): mpirun sees those and ends the job.
///
/// Over several hosts NCCL needs nothing that HostGather does for MPI. In its ring all-gather
/// (`runRing` of NCCL's src/device/all_gather.h) each GPU passes every block on to the next one of
/// the ring, and the ring enters a host once: a block takes each link between two hosts about once,
/// however many GPUs a host has. The rings of its channels enter at different GPUs and network
/// cards. Their order is NCCL's own, made from the topology that it finds, and blocks are placed by
/// `ring->userRanks`: in which order mpirun numbers the ranks of the hosts does not matter.
class NcclCommunicator final : public Communicator {
 public:
  struct Options {
    /// Zero-CTA policy: all-gathers whose two ends both lie in memory of `allocate` are moved by
    /// copy engines; all others are kernels. NCCL_CTA_POLICY in the environment overrides it.
    bool copy_engine = false;
    CommFailure on_failure;
  };

  /// Why this library or this world cannot use copy engines; empty if they can be tried. The same
  /// on every rank.
  static std::string copy_engine_obstacle(const RankGroup& ranks);

  /// Collective, main thread. The device's GPU is the thread's current one. Makes NCCL's
  /// connections at once, which it would make (and take memory for) in the first calls. Throws on
  /// all ranks or none: ConfigError where two ranks share a GPU, CommError for NCCL's failures.
  NcclCommunicator(RankGroup& ranks, Device& device, Options options);
  /// Collective, after the streams' work. Left by an exception or after an error, it gives up its
  /// connections without the others.
  ~NcclCommunicator() override;

  void all_gather(const void* send, void* recv, std::size_t bytes, Stream& stream) override;
  void all_to_all(const void* send, void* recv, std::size_t bytes, Stream& stream) override;
  Buffer allocate(Device& device, std::size_t bytes) override;
  /// Not by NCCL: see gpu_peers.h.
  std::unique_ptr<PeerExchange> make_peer_exchange(Device& device, std::size_t bytes) override;
  /// Of the enqueued calls, as NCCL's rings and point-to-point messages would receive them: it has
  /// no counters of its own.
  std::uint64_t network_bytes() const override;
  void check() override;

  /// Whether `allocate` gives memory for copy engines: asked for, and not refused so far.
  bool copy_engine() const;

 private:
  struct State;

  void connect(RankGroup& ranks);
  void warm_up(RankGroup& ranks);
  Buffer allocate_window(RankGroup& ranks, std::size_t bytes);

  std::unique_ptr<State> state_;
};

}  // namespace zi
