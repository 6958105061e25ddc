#include "engine/memory_planner.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "engine/embedding_rows.h"
#include "engine/model_weights.h"
#include "engine/pass_inputs.h"
#include "engine/pass_runner.h"
#include "engine/replica_planner.h"
#include "engine/workspace_plan.h"
#include "offload/layer_fetcher.h"
#include "offload/nvme_store.h"
#include "offload/placement.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// Tokens of KV that a lane gets unless --kv-budget says otherwise.
constexpr std::int64_t kDefaultLaneTokens = 2048;
/// Rows of a pass unless --max-pass-tokens says otherwise: enough for products to be bound by
/// arithmetic, and on a GPU for long prompts to need few trips of the weights.
constexpr std::int64_t kHostPassTokens = 512;
constexpr std::int64_t kDevicePassTokens = 2048;
/// Rows of logits at once: a compromise between reading the head again and (rows, vocabulary)
/// float32.
constexpr std::int64_t kHostHeadRows = 32;
constexpr std::int64_t kDeviceHeadRows = 256;
/// With --travel auto, rows of each rank in a round of the exchanges: a pass of more goes in
/// several. With so many, products are bound by arithmetic, and reading the weights again costs
/// little.
constexpr std::int64_t kExchangeRows = 1024;
/// Where those would take memory from the KV cache or from resident blocks: those of decoding, and
/// these at least.
constexpr std::int64_t kFewExchangeRows = 64;
/// The part of the KV cache that may then be lost all the same.
constexpr std::int64_t kKvShareLost = 64;
/// The rest is left to other parts of the process and to the system.
constexpr double kUsableDevice = 0.95;
constexpr double kUsableHost = 0.90;
/// Of what is left for the KV cache: its block tables take some as well.
constexpr double kUsableForKv = 0.98;

std::size_t scaled(std::size_t bytes, double factor) {
  return static_cast<std::size_t>(static_cast<double>(bytes) * factor);
}

/// Memory that one rank may take on its device and on its host.
struct Room {
  std::size_t device;
  std::size_t host;
};

Room room_of(const PlanInput& in) {
  const std::size_t host =
      scaled(in.host_free, kUsableHost) / static_cast<std::size_t>(in.local_size);
  return {in.device_is_host ? host : scaled(in.device_free, kUsableDevice), host};
}

std::size_t vectors_bytes(const ModelSpec& spec) {
  std::int64_t elements = 0;
  const auto add = [&](const std::vector<TensorSpec>& vectors) {
    for (const TensorSpec& v : vectors) {
      elements += static_cast<std::int64_t>(
          align_up(static_cast<std::size_t>(v.elements()), kMatrixAlignment / sizeof(float)));
    }
  };
  add(spec.vectors);
  add(spec.head.vectors);
  for (const UnitSpec& block : spec.blocks) add(block.vectors);
  return static_cast<std::size_t>(elements) * sizeof(float);
}

/// What --gpu-weight-budget, which counts replicas, leaves for shards.
std::optional<std::size_t> shard_budget(const MemoryPlan& plan, const RunConfig& config) {
  if (!config.gpu_weight_budget) return std::nullopt;
  return *config.gpu_weight_budget - std::min(*config.gpu_weight_budget, plan.replicas);
}

/// Device memory that the KV cache may take without --kv-budget. Blocks that must stay on the GPU
/// come first. Where blocks may be offloaded, or share memory with everything else on the host, the
/// cache gets a quarter, or what slots, head and activations leave of that.
std::size_t kv_room(const MemoryPlan& plan, const PlanInput& in, const RunConfig& config,
                    const Room& room, std::size_t all_shards) {
  const bool offload = config.cpu_offload || config.nvme_offload_path.has_value();
  const auto left_of = [&](std::size_t taken) {
    return room.device > taken ? scaled(room.device - taken, kUsableForKv) : 0;
  };
  if (in.device_is_host || offload) {
    return std::min(room.device / 4,
                    left_of(plan.device_bytes() + shard_budget(plan, config).value_or(0)));
  }
  return left_of(plan.device_bytes() + shard_budget(plan, config).value_or(all_shards));
}

/// Bytes of a page of the KV cache, in all layers.
std::size_t page_bytes(const MemoryPlan& plan, const ModelConfig& c) {
  return kv_layer(c, plan.compute_dtype).page_bytes() * static_cast<std::size_t>(c.layers);
}

/// Pages of 2048 tokens a lane, or of the model's positions.
std::size_t usual_pages(const MemoryPlan& plan, const ModelConfig& c) {
  const std::int64_t tokens =
      c.max_positions == 0 ? kDefaultLaneTokens : std::min(kDefaultLaneTokens, c.max_positions);
  return static_cast<std::size_t>(plan.lanes * ceil_div(tokens, kKvPageTokens));
}

/// Where an embedding of its own rests: on the device, if blocks and KV cache lose nothing by it.
/// Else in host memory, if there is room: a pass reads a few of its rows, and would move or
/// recompute more for want of the memory that it leaves to them.
Tier embedding_tier(const MemoryPlan& plan, const PlanInput& in, const RunConfig& config,
                    const Room& room, std::size_t all_shards) {
  const bool host_has_room = plan.host_bytes() + plan.embedding_shard <= room.host;
  if (in.device_is_host || !host_has_room) return Tier::kDevice;
  if (config.cpu_offload || config.nvme_offload_path) return Tier::kHost;
  const std::size_t kv = config.kv_budget.value_or(usual_pages(plan, in.model->config()) *
                                                   page_bytes(plan, in.model->config()));
  const std::size_t taken =
      plan.device_bytes() + plan.embedding_shard + shard_budget(plan, config).value_or(all_shards);
  return taken < room.device && kv <= scaled(room.device - taken, kUsableForKv) ? Tier::kDevice
                                                                                : Tier::kHost;
}

/// KV memory: what was asked for, else room for 2048 tokens a lane as far as `room` goes.
void plan_kv(MemoryPlan& plan, const PlanInput& in, const RunConfig& config, std::size_t room) {
  const ModelConfig& c = in.model->config();
  const std::size_t page = page_bytes(plan, c);
  std::size_t pages;
  if (config.kv_budget) {
    pages = *config.kv_budget / page;
    if (pages == 0) {
      throw ConfigError(fmt::format(
          "--kv-budget {} is less than one page of the KV cache: {} tokens take {}; raise it",
          format_memory(static_cast<double>(*config.kv_budget)), kKvPageTokens,
          format_memory(static_cast<double>(page))));
    }
  } else {
    pages = std::clamp<std::size_t>(room / page, 1, usual_pages(plan, c));
  }
  plan.kv_pages = static_cast<std::int64_t>(pages);
  plan.max_sequence_tokens = plan.kv_pages * kKvPageTokens;
  plan.kv = pages * page;
}

/// Says how many tokens fewer the KV cache has for the memory that replicas are given. Within
/// --gpu-weight-budget it has no fewer.
void note_lost_kv(MemoryPlan& plan, const PlanInput& in, const RunConfig& config, const Room& room,
                  std::size_t all_shards) {
  if (config.gpu_weight_budget) return;
  MemoryPlan without = plan;
  without.replicas = 0;
  plan_kv(without, in, config, kv_room(without, in, config, room, all_shards));
  if (without.kv_pages == plan.kv_pages) return;
  plan.notes.push_back(fmt::format(
      "--replicated-blocks {} leave the KV cache of a rank {} tokens instead of {}; lower it, or "
      "give --kv-budget",
      *config.replicated_blocks, plan.kv_pages * kKvPageTokens, without.kv_pages * kKvPageTokens));
}

/// How the weights of blocks and the activations meet, in passes of several ranks.
struct Way {
  Travel travel = Travel::kWeights;
  std::int64_t round_rows = 0;  // of each rank, where activations travel; 0: those of a pass
  bool trial_slot = false;      // one more, as a shard for the trial: no block rests on the device
};

TierBudgets budgets_of(const MemoryPlan& plan, const Room& room, const PlanInput& in,
                       const RunConfig& config, std::size_t all_shards) {
  TierBudgets budgets;
  budgets.nvme = config.nvme_offload_path.has_value();
  const bool offload = config.cpu_offload || budgets.nvme;
  if (const auto budget = shard_budget(plan, config)) {
    budgets.device_bytes = *budget;
  } else if (!offload) {
    budgets.device_bytes = all_shards;
  } else if (!in.device_is_host) {
    const std::size_t taken = plan.device_bytes();
    budgets.device_bytes = room.device > taken ? room.device - taken : 0;
  }  // on the CPU backend the device tier is host memory: with an offload, all blocks leave it
  if (config.cpu_weight_budget) {
    budgets.host_bytes = *config.cpu_weight_budget;
  } else if (config.cpu_offload && !budgets.nvme) {
    budgets.host_bytes = std::numeric_limits<std::size_t>::max();
  } else if (config.cpu_offload) {
    const std::size_t taken =
        plan.host_bytes() + (in.device_is_host ? plan.device_bytes() + budgets.device_bytes : 0);
    budgets.host_bytes = room.host > taken ? room.host - taken : 0;
  }
  return budgets;
}

/// Slots for the blocks that travel by the plan.
void plan_slots(MemoryPlan& plan) {
  std::vector<const PartitionLayout*> layouts;
  for (const PartitionLayout& layout : plan.blocks) layouts.push_back(&layout);
  plan.slots = LayerFetcher::slots_bytes(layouts, plan.tiers, plan.slot_count, plan.all_stay(),
                                         plan.replicated);
  plan.nvme_slot =
      LayerFetcher::has_nvme_slot(layouts, plan.tiers, plan.all_stay(), plan.replicated);
}

void check_fit(MemoryPlan& plan, const PlanInput& in, const RunConfig& config, const Room& room) {
  const std::size_t device = plan.device_bytes();
  const std::size_t host = plan.process_bytes();
  std::string otherwise =
      plan.block_format.packed() ? "" : ", or give --weight-format int8 or int4";
  if (config.partition_within == PartitionWithin::kHost) {
    otherwise += ", or --partition-within job, for the memory of all hosts";
  }
  const auto refuse = [&](std::string_view where, std::size_t needed, std::size_t free,
                          std::string_view advice) {
    throw MemoryError(fmt::format(
        "the plan does not fit: a rank needs {} of {} memory, {} are available; {}{}\n{}",
        format_memory(static_cast<double>(needed)), where, format_memory(static_cast<double>(free)),
        advice, otherwise, plan.table()));
  };
  if (!in.device_is_host && device > room.device) {
    refuse("device", device, room.device,
           fmt::format("lower {}--batch-size, --kv-budget or --gpu-weight-budget, give "
                       "--cpu-offload or --nvme-offload-path, or use --backend cpu",
                       plan.replicas > 0 ? "--replicated-blocks, " : ""));
  }
  if (host > room.host && !in.device_is_host && config.cpu_weight_budget) {
    // Virtual machines can be given memory as they use it: an explicit budget knows better.
    plan.notes.push_back(fmt::format(
        "the host reports {} for each rank; the plan takes {}, as --cpu-weight-budget says",
        format_memory(static_cast<double>(room.host)), format_memory(static_cast<double>(host))));
  } else if (host > room.host) {
    refuse("host", host, room.host,
           in.device_is_host ? "lower --batch-size or --kv-budget, use more hosts, or give "
                               "--nvme-offload-path with --gpu-weight-budget 0"
                             : "lower --cpu-weight-budget and give --nvme-offload-path");
  }
}

MemoryPlan plan_for(const PlanInput& in, const RunConfig& config, const Way& way) {
  const ModelConfig& c = in.model->config();
  const ModelSpec& spec = in.model->spec();
  MemoryPlan plan;
  plan.device_is_host = in.device_is_host;
  plan.block_format = in.block_format.usual;
  plan.head_format = in.head_format;
  plan.compute_dtype = in.compute_dtype;
  plan.travel = way.travel;
  plan.lanes = *std::max_element(config.batch_size.begin(), config.batch_size.end());
  const std::int64_t most_rows = config.max_pass_tokens != 0 ? config.max_pass_tokens
                                 : in.device_is_host         ? kHostPassTokens
                                                             : kDevicePassTokens;
  plan.pass_tokens = std::max(most_rows, plan.lanes);
  const std::int64_t most = in.device_is_host ? kHostHeadRows : kDeviceHeadRows;
  plan.head_rows = config.score ? std::min(most, plan.pass_tokens) : std::min(most, plan.lanes);

  std::vector<std::size_t> shard_bytes;
  std::size_t all_shards = 0;
  for (const UnitSpec& unit : spec.blocks) {
    plan.blocks.emplace_back(unit, in.block_format, in.world);
    shard_bytes.push_back(plan.blocks.back().shard_bytes());
    all_shards += shard_bytes.back();
  }
  plan.head.emplace_back(spec.head, plan.head_format, in.world);
  plan.head_shard = plan.head.front().shard_bytes();
  if (!spec.tied()) {
    const UnitSpec unit{.name = "embedding", .matrices = {spec.embedding}, .vectors = {}};
    plan.embedding.emplace_back(unit, plan.head_format, in.world);
    plan.embedding_shard = plan.embedding.front().shard_bytes();
  }
  plan.vectors = vectors_bytes(spec);
  plan_workspaces(plan, in, way.round_rows);
  plan_split_products(plan, in, config);
  plan.row_exchange = EmbeddingRows::workspace_bytes(EmbeddingRows::shape_of(plan, c));
  if (config.nvme_offload_path) {
    const NvmeOptions options;
    plan.staging = options.slots() * options.extent_bytes;
  }

  const Room room = room_of(in);
  plan.device_room = room.device;
  plan.host_room = room.host;
  plan.results = PassRunner::results_bytes(plan.pass_tokens);
  const std::size_t asked = replicas_asked_for(config, spec.blocks.size(), in.world);
  plan.replicated.assign(plan.blocks.size(), false);
  plan.replicas = asked * static_cast<std::size_t>(in.world - 1) *
                  *std::max_element(shard_bytes.begin(), shard_bytes.end());
  // Before the tiers are known, every block counts as one that travels: slots are needed.
  const bool copied_and_gathered =
      in.world > 1 && !plan.all_stay() &&
      (config.cpu_offload || config.nvme_offload_path.has_value() || way.trial_slot);
  plan.slot_count = copied_and_gathered ? 3 : 2;
  std::vector<const PartitionLayout*> layouts;
  for (const PartitionLayout& layout : plan.blocks) layouts.push_back(&layout);
  // And where some may rest on NVMe beside others that travel, they do.
  const bool others = config.cpu_offload || in.world > 1;
  std::vector<Tier> unknown(layouts.size(), others ? Tier::kHost : Tier::kNvme);
  if (config.nvme_offload_path) unknown.back() = Tier::kNvme;
  plan.slots = LayerFetcher::slots_bytes(layouts, unknown, plan.slot_count, plan.all_stay());
  const bool stays = !config.cpu_offload && !config.nvme_offload_path;
  // What rests on the device.
  const bool in_place = in.world == 1 || plan.all_stay() || asked == plan.blocks.size();
  if (in_place && stays) plan.slots = 0;
  plan.embedding_tier = Tier::kHost;  // what else the device holds is counted without it
  plan.embedding_tier = embedding_tier(plan, in, config, room, all_shards);
  plan_kv(plan, in, config, kv_room(plan, in, config, room, all_shards));
  if (asked > 0 && !config.kv_budget) note_lost_kv(plan, in, config, room, all_shards);
  plan.inputs = PassInputs::bytes(PassInputs::shape_of(plan, c));
  plan.tiers = place_units(shard_bytes, budgets_of(plan, room, in, config, all_shards));
  if (asked > 0) replicate_asked(plan, config, asked);
  plan_slots(plan);
  if (std::ranges::find(plan.tiers, Tier::kNvme) == plan.tiers.end()) plan.staging = 0;
  for (std::size_t i = 0; i < plan.tiers.size(); ++i) {
    (plan.tiers[i] == Tier::kDevice ? plan.device_shards
     : plan.tiers[i] == Tier::kHost ? plan.host_shards
                                    : plan.nvme_shards) += shard_bytes[i];
  }
  drop_split_products(plan, in, config);
  plan.loading = ModelWeights::loading_bytes(plan, config.load_format == LoadFormat::kDummy);
  check_fit(plan, in, config, room);
  return plan;
}

/// Nothing where it does not fit.
std::optional<MemoryPlan> plan_if_fits(const PlanInput& in, const RunConfig& config,
                                       const Way& way) {
  try {
    return plan_for(in, config, way);
  } catch (const MemoryError&) {
    return std::nullopt;
  }
}

/// For passes of either kind, with exchanges of so many rows at once.
std::optional<MemoryPlan> plan_both_ways(const PlanInput& in, const RunConfig& config,
                                         std::int64_t rows) {
  std::optional<MemoryPlan> plan = plan_if_fits(in, config, {Travel::kAuto, rows});
  constexpr int kSlotsOfTrial = 3;  // two, and the shard
  if (!plan || plan->device_shards > 0 || plan->slot_count >= kSlotsOfTrial) return plan;
  return plan_if_fits(in, config, {Travel::kAuto, rows, true});
}

/// Whether KV cache and blocks have as much of the faster memories as in the other plan.
bool keeps_all(const MemoryPlan& plan, const MemoryPlan& of) {
  return plan.kv_pages >= of.kv_pages && plan.device_shards >= of.device_shards &&
         plan.nvme_shards <= of.nvme_shards;
}

/// Whether they have nearly as much: a block and a part of the cache may go, and none to NVMe.
bool keeps_nearly_all(const MemoryPlan& plan, const MemoryPlan& of) {
  return of.kv_pages - plan.kv_pages <= of.kv_pages / kKvShareLost &&
         plan.device_shards + of.blocks.front().shard_bytes() >= of.device_shards &&
         plan.nvme_shards <= of.nvme_shards;
}

/// Slots and the memory of exchanges, for passes of either kind; where these do not fit, what does:
/// passes that gather as before any that stay, because a smaller KV cache may refuse a prompt.
MemoryPlan plan_either_way(const PlanInput& in, const RunConfig& config) {
  std::optional<MemoryPlan> gathers = plan_if_fits(in, config, {Travel::kWeights});
  if (!gathers) {
    std::optional<MemoryPlan> stays;
    if (config.replicated_blocks.value_or(0) == 0) {
      stays = plan_if_fits(in, config, {Travel::kActivations});
    }
    if (!stays) return plan_for(in, config, {Travel::kWeights});  // refuses
    stays->notes.push_back(
        "weights stay in every pass: there is no room for the slots that gathered blocks need "
        "(--travel auto)");
    return std::move(*stays);
  }
  std::optional<MemoryPlan> either = plan_both_ways(in, config, kExchangeRows);
  if (either && keeps_all(*either, *gathers)) return std::move(*either);
  const std::int64_t few = std::max(gathers->lanes, kFewExchangeRows);
  either = plan_both_ways(in, config, std::min(few, kExchangeRows));
  if (either && keeps_nearly_all(*either, *gathers)) return std::move(*either);
  gathers->notes.push_back(
      "weights travel in every pass: slots and KV cache leave no room for passes in which they "
      "stay (--travel auto); a smaller --kv-budget makes some");
  return std::move(*gathers);
}

}  // namespace

MemoryPlan make_plan(const PlanInput& in, const RunConfig& config) {
  if (in.world == 1) return plan_for(in, config, {Travel::kWeights});
  MemoryPlan plan = config.travel == Travel::kAuto ? plan_either_way(in, config)
                                                   : plan_for(in, config, {config.travel});
  if (!config.replicated_blocks) {
    const std::size_t taken = plan.device_bytes();
    const std::size_t left = plan.device_room > taken ? plan.device_room - taken : 0;
    replicate_what_fits(plan, config, scaled(left, kUsableForKv));
    plan_slots(plan);
  }
  return plan;
}

}  // namespace zi
