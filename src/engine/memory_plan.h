#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "offload/shard_store.h"
#include "zero_infer/dtype.h"
#include "zero_infer/partition_layout.h"

namespace zi {

/// All memory of one rank, known before any of it is taken. The engine takes exactly this. A plain
/// value: code that takes memory reads it, and memory_planner.h, which makes it, asks that code how
/// much.
struct MemoryPlan {
  DType weight_dtype = DType::kBFloat16;
  DType compute_dtype = DType::kBFloat16;
  std::vector<PartitionLayout> blocks;
  std::vector<PartitionLayout> head;  // one
  std::vector<Tier> tiers;            // of each block
  bool device_is_host = true;         // the CPU backend: one memory for both
  std::size_t device_room = 0;        // that a rank may take on its device
  std::size_t host_room = 0;          // and on its host
  int slot_count = 2;
  std::int64_t lanes = 1;
  std::int64_t pass_tokens = 1;  // rows of a pass at most
  std::int64_t head_rows = 1;    // rows of logits computed at once
  std::int64_t kv_pages = 0;
  std::int64_t max_sequence_tokens = 0;  // that the KV pages can hold

  std::vector<std::string> notes;  // doubts about a plan that was accepted all the same

  // Bytes of one rank.
  std::size_t device_shards = 0;
  std::size_t host_shards = 0;
  std::size_t nvme_shards = 0;
  std::size_t head_shard = 0;
  std::size_t vectors = 0;
  std::size_t slots = 0;
  std::size_t kv = 0;
  std::size_t workspace = 0;       // activations of the blocks
  std::size_t head_workspace = 0;  // hidden states, logits and their exchange
  std::size_t inputs = 0;          // of a pass; as many bytes are pinned
  std::size_t results = 0;         // pinned: what a pass samples
  std::size_t staging = 0;         // pinned buffers of the NVMe reads
  std::size_t loading = 0;         // pinned while weights are loaded, given back before passes

  std::size_t device_bytes() const {
    return device_shards + head_shard + vectors + slots + kv + workspace + head_workspace + inputs;
  }
  /// Pinned memory while weights are loaded: on a GPU the last shards are still on their way
  /// through `loading` when all others rest where they belong.
  std::size_t loading_host_bytes() const {
    return loading + (device_is_host ? 0 : host_shards + staging);
  }
  /// Pinned memory at its peak: of passes, or of loading.
  std::size_t host_bytes() const { return std::max(pass_host_bytes(), loading_host_bytes()); }
  /// Device and host together, at their peak.
  std::size_t rank_bytes() const {
    return std::max(device_bytes() + pass_host_bytes(),
                    device_shards + head_shard + vectors + slots + loading_host_bytes());
  }
  /// Of the host's memory, at its peak.
  std::size_t process_bytes() const { return device_is_host ? rank_bytes() : host_bytes(); }
  /// A table for people: one line per part, and the sums with what is available.
  std::string table() const;

 private:
  std::size_t pass_host_bytes() const { return host_shards + staging + inputs + results; }
};

}  // namespace zi
