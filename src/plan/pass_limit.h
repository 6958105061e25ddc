#pragma once

#include <cstdint>
#include <vector>

#include "base/link.h"
#include "engine/memory_plan.h"
#include "plan/machine_limits.h"
#include "zero_infer/model.h"

namespace zi {

/// One link's part of a pass of one rank; of host memory and of the network, that of all ranks of a
/// host.
struct LinkLoad {
  Link link = Link::kProducts;
  double amount = 0;  // bytes; of products, operations
  double rate = 0;    // a second; 0: not known, it then bounds nothing
  double seconds() const { return rate > 0 ? amount / rate : 0; }
};

/// The least time of a decoding pass: its links work side by side, so it takes at least as long as
/// the slowest of them. Where weights stay, a product waits for its inputs and the next one for its
/// results: exchanges, inside hosts and between them, are beside nothing else.
struct PassLimit {
  std::int64_t batch = 1;  // lanes of a rank, one row each
  int ranks = 1;
  std::vector<LinkLoad> links;         // those that are used
  bool products_read_weights = false;  // few rows: products wait for memory, not for arithmetic
  bool stays = false;                  // weights do, and activations travel
  std::size_t exchanges = 0;           // collective calls that blocks then take
  double host_share = 0;               // of the weights in host memory that its cores multiply

  const LinkLoad& bottleneck() const;
  double seconds() const;
  /// Of the whole job; 0 where no rate is known.
  double tokens_per_second() const;
  /// The link's load; null where it is not used.
  const LinkLoad* find(Link link) const;
};

/// Who is at work in a pass.
struct PassShape {
  int ranks = 1;
  int partition = 1;  // of them, those that hold all weights together
  int ranks_per_host = 1;
  std::int64_t batch = 1;   // lanes of a rank
  std::int64_t tokens = 1;  // of each sequence: its keys and values are read
};

/// Divides what a pass moves by what the machine can. Bytes of one rank:
/// - gather: the shards of all blocks from the other ranks, or where weights stay the inputs and
///   results of their products; and the head's exchange of hidden states and logits;
/// - network: of these, what comes from other hosts, once for a host and not once for each of its
///   ranks. NCCL's ring brings a host its own shards as well, but for one;
/// - copy: its own shards of the host and NVMe tiers, less what the host's cores multiply. Where
/// the
///   share is to be measured, it is the one with which both would take as long;
/// - host memory: with such a share, what is copied and multiplied from there;
/// - nvme read: its own shards of that tier, with its share of the host's disk;
/// - device memory: weights read where they rest or in their slot, slots written, shards read for
///   copies and by the other ranks, keys and values of all lanes. On the CPU backend all of this is
///   the host's memory, shared by its ranks.
/// Products: two operations for each element of the blocks and the head, for each row.
PassLimit pass_limit(const MemoryPlan& plan, const Model& model, const MachineLimits& limits,
                     const PassShape& shape);

}  // namespace zi
