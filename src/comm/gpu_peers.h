#pragma once

#include <cstddef>
#include <memory>

#include "zero_infer/device.h"
#include "zero_infer/peer_exchange.h"
#include "zero_infer/rank_group.h"

namespace zi {

/// Collective, main thread: a PeerExchange of `bytes` a rank by CUDA's memory handles between
/// processes, tried once with known bytes. Null on all ranks, with a warning the first time, where
/// some GPU does not reach the memory of another: ranks on several hosts, GPUs without peer access,
/// containers of their own, or NCCL_P2P_DISABLE in the environment, which is set where peer access
/// is broken. Throws on all ranks or none, ConfigError where there is not so much memory. The
/// device's GPU is the thread's current one. Destroying it is collective, after the work that uses
/// it, unless an exception is the reason. Kernels of a rank whose peer is lost wait for ever, as
/// NCCL's do: mpirun ends the job.
std::unique_ptr<PeerExchange> make_gpu_peers(RankGroup& ranks, Device& device, std::size_t bytes);

}  // namespace zi
