#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "zero_infer/rank_group.h"

namespace zi {

/// NCCL, in builds that have CUDA: collectives between the ranks' GPUs.

/// What moves the bytes of an all-gather.
enum class Gather {
  kFastest,     // what a trial finds
  kPlain,       // kernels, which take some SMs from products that run at the same time
  kCopyEngine,  // copy engines: NCCL 2.28 or newer, all ranks on one host with peer access
};

/// Called once when the communicator is lost, with the reason. Usually on a thread of the
/// communicator, since the main thread may be waiting for a stream that never ends. Should end the
/// job (RankGroup::abort).
using CommFailure = std::function<void(const std::string&)>;

/// Collective, main thread; a failure on any rank is thrown on all (`Gather::kCopyEngine` falls
/// back to kernels, with one warning, where it is not available). The device's GPU must be the
/// thread's current one and no other rank's, else ConfigError. kFastest times all-gathers of
/// `typical_bytes` a rank (what the memory allows, 256 MiB at most) and keeps the better way, the
/// same on all ranks. All lazy set-up is done when this returns: the device's free memory is what
/// is left for others. World and Device must outlive it. Destroying it is collective, unless an
/// exception or a lost peer is the reason.
std::unique_ptr<Communicator> make_nccl_communicator(RankGroup& ranks, Device& device,
                                                     std::size_t typical_bytes,
                                                     CommFailure on_failure,
                                                     Gather gather = Gather::kFastest);

}  // namespace zi
