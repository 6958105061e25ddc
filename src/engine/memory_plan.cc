#include "engine/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "zero_infer/bytes.h"

namespace zi {

std::string MemoryPlan::table() const {
  const auto count = [this](Tier tier) { return std::ranges::count(tiers, tier); };
  std::string out;
  const auto line = [&out](std::string_view what, std::size_t bytes, const std::string& note) {
    if (bytes == 0) return;
    out +=
        fmt::format("  {:<22} {:>10}  {}\n", what, format_memory(static_cast<double>(bytes)), note);
  };
  const std::string type = describe(block_format);
  const std::string head_type = describe(head_format);
  line("block shards, device", device_shards,
       fmt::format("{} blocks, {}", count(Tier::kDevice), type));
  line("block replicas", replicas,
       fmt::format("other ranks' shards of {} blocks, which no pass gathers", replicated_count()));
  line("block shards, host", host_shards, fmt::format("{} blocks, {}", count(Tier::kHost), type));
  line("block shards, nvme", nvme_shards,
       fmt::format("{} blocks, {} (on disk)", count(Tier::kNvme), type));
  line("head shard", head_shard, fmt::format("rows of the vocabulary, {}", head_type));
  line("embedding shard", embedding_shard,
       fmt::format("rows of the vocabulary, {}{}", head_type,
                   embedding_tier == Tier::kHost ? ", pinned: the device reads it there" : ""));
  line("vectors", vectors, "norms, biases and positions, float32");
  line("slots", slots,
       fmt::format("{} {}{}", slot_count, all_stay() ? "own shards of blocks" : "gathered blocks",
                   nvme_slot ? ", and one for those on NVMe" : ""));
  line("KV cache", kv,
       fmt::format("{} pages, {} tokens, {}", kv_pages, max_sequence_tokens,
                   name_of(compute_dtype)));
  line("workspace", workspace, fmt::format("activations of {} rows", pass_tokens));
  line("logits", head_workspace, fmt::format("{} rows at once", head_rows));
  line("product exchange", product_exchange.bytes(),
       "inputs and results on their way between ranks");
  line("split products", split_products, "the device's part of products that the host shares");
  line("host products", host_products, "inputs and results of the host's part, pinned");
  line("row exchange", row_exchange, "embedding rows on their way between ranks");
  line("inputs", inputs, "indices of a pass, on the device and pinned");
  line("results", results, "what a pass samples, pinned");
  line("staging", staging, "NVMe reads in flight, pinned");
  line("loading", loading, "pinned until the weights are loaded");
  const auto room = [](std::size_t bytes) {
    return fmt::format("of {} that a rank can have", format_memory(static_cast<double>(bytes)));
  };
  if (!device_is_host) line("= device memory", device_bytes(), room(device_room));
  line(device_is_host ? "= memory" : "= pinned memory", process_bytes(), room(host_room));
  if (!out.empty()) out.pop_back();
  return out;
}

}  // namespace zi
