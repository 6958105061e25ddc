#include <nlohmann/json.hpp>

#include "plan/plan_report.h"

namespace zi {
namespace {

using nlohmann::ordered_json;

ordered_json memory_json(const MemoryPlan& plan) {
  return {{"device_bytes", plan.device_bytes()},
          {"device_room_bytes", plan.device_is_host ? 0 : plan.device_room},
          {"host_bytes", plan.process_bytes()},
          {"host_room_bytes", plan.host_room},
          {"block_shards_device", plan.device_shards},
          {"block_replicas", plan.replicas},
          {"block_shards_host", plan.host_shards},
          {"block_shards_nvme", plan.nvme_shards},
          {"head_shard", plan.head_shard},
          {"embedding_shard", plan.embedding_shard},
          {"vectors", plan.vectors},
          {"slots", plan.slots},
          {"kv", plan.kv},
          {"workspace", plan.workspace},
          {"logits", plan.head_workspace},
          {"product_exchange", plan.product_exchange.bytes()},
          {"row_exchange", plan.row_exchange},
          {"inputs", plan.inputs},
          {"results", plan.results},
          {"staging", plan.staging},
          {"loading", plan.loading}};
}

ordered_json kv_json(const PlanReport& r) {
  ordered_json lanes = ordered_json::array();
  for (const std::int64_t tokens : r.lengths()) {
    lanes.push_back({{"tokens", tokens}, {"lanes", lanes_held(r.plan, tokens)}});
  }
  return {{"token_bytes", r.kv_token_bytes},
          {"pages", r.plan.kv_pages},
          {"page_tokens", kKvPageTokens},
          {"lanes", lanes}};
}

ordered_json links_json(const PassLimit& limit) {
  ordered_json links = ordered_json::array();
  for (const LinkLoad& load : limit.links) {
    ordered_json link = {{"link", name_of(load.link)}};
    if (load.link == Link::kProducts) {
      link["operations"] = load.amount;
      link["tflop_s"] = load.rate / kTera;
    } else {
      link["bytes"] = load.amount;
      link["gb_s"] = load.rate / kGiga;
    }
    link["seconds"] = load.seconds();
    links.push_back(link);
  }
  return links;
}

ordered_json limit_json(const PassLimit& limit, bool fits) {
  return {{"batch", limit.batch},
          {"fits", fits},
          {"travel", limit.stays ? "activations" : "weights"},
          {"exchanges", limit.exchanges},
          {"cpu_share", limit.host_share},
          {"pass_s", limit.seconds()},
          {"tokens_per_s", limit.tokens_per_second()},
          {"bottleneck", name_of(limit.bottleneck().link)},
          {"links", links_json(limit)}};
}

}  // namespace

std::string report_json(const PlanReport& r) {
  ordered_json tiers = ordered_json::array();
  for (const Tier tier : r.plan.tiers) tiers.push_back(name_of(tier));
  ordered_json batches = ordered_json::array();
  for (const BatchLimit& b : r.batches) {
    batches.push_back(b.limit ? limit_json(*b.limit, true)
                              : ordered_json{{"batch", b.batch}, {"fits", false}});
  }
  const ordered_json object = {
      {"name", "plan"},
      {"model", r.model},
      {"parameters", r.parameters},
      {"weight_format", name_of(r.plan.block_format)},
      {"head_format", name_of(r.plan.head_format)},
      {"compute_dtype", name_of(r.plan.compute_dtype)},
      {"ranks", r.machine.ranks},
      {"ranks_per_host", r.machine.ranks_per_host},
      {"partition", r.plan.blocks.front().world()},
      {"batch", r.plan.lanes},
      {"tokens", r.tokens},
      {"notes", r.notes},
      {"tiers", tiers},
      {"replicated_blocks", r.plan.replicated_count()},
      {"memory", memory_json(r.plan)},
      {"kv", kv_json(r)},
      {"host_peak_bytes", r.host_peak_bytes()},
      {"host_disk_bytes", r.host_disk_bytes()},
      {"pass", limit_json(r.pass, lanes_held(r.plan, r.tokens) >= r.pass.batch)},
      {"batches", batches},
      {"advice", r.advice},
      {"limits", ordered_json::parse(r.machine.limits.to_json())}};
  return object.dump() + "\n";
}

}  // namespace zi
