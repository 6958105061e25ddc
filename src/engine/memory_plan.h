#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/row_exchange.h"
#include "offload/shard_store.h"
#include "zero_infer/dtype.h"
#include "zero_infer/partition_layout.h"
#include "zero_infer/run_config.h"

namespace zi {

/// All memory of one rank, known before any of it is taken. The engine takes exactly this. A plain
/// value: code that takes memory reads it, and memory_planner.h, which makes it, asks that code how
/// much.
struct MemoryPlan {
  WeightFormat block_format;  // of most of the blocks' matrices
  WeightFormat head_format;   // of head and embedding
  DType compute_dtype = DType::kBFloat16;
  std::vector<PartitionLayout> blocks;
  std::vector<PartitionLayout> head;       // one
  std::vector<PartitionLayout> embedding;  // one, or none: it is the head's matrix
  std::vector<Tier> tiers;                 // of each block
  std::vector<bool> replicated;            // of each block: every rank holds it gathered
  Tier embedding_tier = Tier::kDevice;     // or host, which the device then reads
  bool device_is_host = true;              // the CPU backend: one memory for both
  std::size_t device_room = 0;             // that a rank may take on its device
  std::size_t host_room = 0;               // and on its host
  Travel travel = Travel::kWeights;        // in a world of one nothing does
  std::optional<double> cpu_share = 0.0;   // as RunConfig's, where the host can have one
  int slot_count = 2;
  std::int64_t lanes = 1;
  std::int64_t pass_tokens = 1;  // rows of a pass at most
  std::int64_t head_rows = 1;    // rows of logits computed at once
  std::int64_t kv_pages = 0;
  std::int64_t max_sequence_tokens = 0;  // that the KV pages can hold

  std::vector<std::string> notes;  // doubts about a plan that was accepted all the same

  // Bytes of one rank.
  std::size_t device_shards = 0;
  std::size_t replicas = 0;  // the other ranks' shards of replicated blocks, on the device
  std::size_t host_shards = 0;
  std::size_t nvme_shards = 0;
  std::size_t head_shard = 0;
  std::size_t embedding_shard = 0;  // of an embedding of its own
  std::size_t vectors = 0;
  std::size_t slots = 0;
  bool nvme_slot = false;  // one of them is for units on NVMe alone
  std::size_t kv = 0;
  std::size_t workspace = 0;           // activations of the blocks
  std::size_t head_workspace = 0;      // hidden states and logits
  RowExchange::Room product_exchange;  // for products that stay, between ranks
  std::size_t split_products = 0;      // the device's part of those that the host has a share of
  std::size_t host_products = 0;       // pinned: inputs and results of the host's part
  std::size_t row_exchange = 0;        // embedding rows on their way between ranks
  std::size_t inputs = 0;              // of a pass; as many bytes are pinned
  std::size_t results = 0;             // pinned: what a pass samples
  std::size_t staging = 0;             // pinned buffers of the NVMe reads
  std::size_t loading = 0;             // pinned while weights are loaded, given back before passes

  /// Of one page of the KV cache, all blocks together.
  std::size_t kv_page_bytes() const {
    return kv_pages == 0 ? 0 : kv / static_cast<std::size_t>(kv_pages);
  }
  std::size_t device_bytes() const {
    return loaded_device_bytes() + kv + workspace + head_workspace + product_exchange.bytes() +
           split_products + row_exchange + inputs;
  }
  /// Pinned memory while weights are loaded: on a GPU the last shards are still on their way
  /// through `loading` when all others rest where they belong.
  std::size_t loading_host_bytes() const {
    return loading + (device_is_host ? 0 : host_shards + embedding_on(Tier::kHost) + staging);
  }
  /// Pinned memory at its peak: of passes, or of loading.
  std::size_t host_bytes() const { return std::max(pass_host_bytes(), loading_host_bytes()); }
  /// Device and host together, at their peak.
  std::size_t rank_bytes() const {
    return std::max(device_bytes() + pass_host_bytes(),
                    loaded_device_bytes() + loading_host_bytes());
  }
  /// Of the host's memory, at its peak.
  std::size_t process_bytes() const { return device_is_host ? rank_bytes() : host_bytes(); }
  /// Bytes of an embedding of its own in this tier.
  std::size_t embedding_on(Tier tier) const { return embedding_tier == tier ? embedding_shard : 0; }
  /// Blocks that every rank holds gathered.
  std::int64_t replicated_count() const { return std::ranges::count(replicated, true); }
  /// Whether no pass gathers blocks: slots hold a rank's own shards.
  bool all_stay() const { return travel == Travel::kActivations; }
  /// Whether weights stay in some passes.
  bool may_stay() const { return travel != Travel::kWeights; }
  /// Whether the host multiplies a share of the weights in its memory, in some passes.
  bool splits() const { return cpu_share != 0.0; }
  /// How the embedding is cut.
  const PartitionLayout& embedding_layout() const {
    return embedding.empty() ? head.front() : embedding.front();
  }
  /// A table for people: one line per part, and the sums with what is available.
  std::string table() const;

 private:
  std::size_t loaded_device_bytes() const {
    return device_shards + replicas + head_shard + embedding_on(Tier::kDevice) + vectors + slots;
  }
  std::size_t pass_host_bytes() const {
    return host_shards + embedding_on(Tier::kHost) + staging + inputs + results + host_products;
  }
};

}  // namespace zi
