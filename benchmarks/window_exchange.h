#pragma once

#include <cstddef>
#include <memory>

#include "zero_infer/device.h"
#include "zero_infer/peer_exchange.h"
#include "zero_infer/rank_group.h"

namespace zi {

/// A PeerExchange by NCCL's device API: kernels store into the memory of every rank through the
/// pointers of a symmetric window, and meet at NCCL's barriers of GPUs that reach each other's
/// memory (LSA). Without NVLink multicast. For products of one matrix whose rows are multiples of
/// 16 bytes.
class WindowExchange : public PeerExchange {
 public:
  /// Where ranks meet.
  enum class Meet {
    kBeforeAndAfter,  // each exchange, as in NCCL's examples: any exchange may follow any other
    kAfter,           // alone: the turns of PeerExchange keep what is still read
  };
  /// For what is enqueued from now on. All ranks must have waited for what they had enqueued.
  virtual void meet(Meet where) = 0;
};

/// Collective, main thread: with `bytes` of each rank's memory, on a communicator of its own. The
/// device's GPU must be the thread's current one and no other rank's. Throws on all ranks
/// (PeerError on all but one) where NCCL is older than its device API or another than this was
/// built for, where it refuses, or where not all ranks reach each other's memory. Release it on all
/// ranks, when they have waited for what they had enqueued.
std::unique_ptr<WindowExchange> make_window_exchange(RankGroup& ranks, Device& device,
                                                     std::size_t bytes);

}  // namespace zi
