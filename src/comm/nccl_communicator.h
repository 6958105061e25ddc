#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "zero_infer/communicator.h"
#include "zero_infer/nccl.h"

namespace zi {

/// Collectives between GPUs by NCCL, on the streams of the CUDA backend. A thread watches for
/// asynchronous errors of NCCL. Peers that die on this host do not cause one (their memory just
/// stays silent): mpirun sees those and ends the job.
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
  static std::string copy_engine_obstacle(const World& world);

  /// Collective, main thread. The device's GPU is the thread's current one. Makes NCCL's
  /// connections at once, which it would make (and take memory for) in the first calls. Throws on
  /// all ranks or none: ConfigError where two ranks share a GPU, CommError for NCCL's failures.
  NcclCommunicator(World& world, Device& device, Options options);
  /// Collective, after the streams' work. Left by an exception or after an error, it gives up its
  /// connections without the others.
  ~NcclCommunicator() override;

  void all_gather(const void* send, void* recv, std::size_t bytes, Stream& stream) override;
  void all_to_all(const void* send, void* recv, std::size_t bytes, Stream& stream) override;
  Buffer allocate(Device& device, std::size_t bytes) override;
  void check() override;

  /// Whether `allocate` gives memory for copy engines: asked for, and not refused so far.
  bool copy_engine() const;

 private:
  struct State;

  void connect(World& world);
  void warm_up(World& world);
  Buffer allocate_window(World& world, std::size_t bytes);

  std::unique_ptr<State> state_;
};

}  // namespace zi
