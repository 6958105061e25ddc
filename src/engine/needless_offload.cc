#include "engine/needless_offload.h"

#include <fmt/format.h>

#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// The plan without any offload; nothing when it does not fit.
std::optional<MemoryPlan> resident_plan(const PlanInput& input, RunConfig config,
                                        std::optional<std::size_t> kv_budget) {
  config.cpu_offload = false;
  config.nvme_offload_path.reset();
  config.cpu_weight_budget.reset();
  config.kv_budget = kv_budget;
  try {
    return make_plan(input, config);
  } catch (const MemoryError&) {
    return std::nullopt;
  }
}

/// What a pass moves because of the offload.
std::string travel_text(const MemoryPlan& plan) {
  const auto size = [](std::size_t bytes) { return format_memory(static_cast<double>(bytes)); };
  std::string text;
  if (plan.host_shards > 0) {
    text = fmt::format("copy {} {} host memory", size(plan.host_shards),
                       plan.device_is_host ? "within" : "from");
  }
  if (plan.nvme_shards > 0) {
    text +=
        fmt::format("{}read {} from storage", text.empty() ? "" : " and ", size(plan.nvme_shards));
  }
  return text;
}

}  // namespace

std::optional<std::string> needless_offload(const MemoryPlan& plan, const PlanInput& input,
                                            const RunConfig& config) {
  const bool to_storage = config.nvme_offload_path.has_value();
  if ((!config.cpu_offload && !to_storage) || config.gpu_weight_budget) return std::nullopt;
  const bool both = config.cpu_offload && to_storage;
  const std::string flags = both         ? "--cpu-offload and --nvme-offload-path"
                            : to_storage ? "--nvme-offload-path"
                                         : "--cpu-offload";
  const char* const it = both ? "them" : "it";
  const std::string fit = fmt::format("all blocks fit in {} without {}",
                                      input.device_is_host ? "memory" : "device memory", flags);
  if (plan.host_shards + plan.nvme_shards > 0) {
    if (!resident_plan(input, config, plan.kv)) return std::nullopt;
    return fmt::format(
        "{}, next to the same KV cache: no pass of a rank would then {}{}", fit, travel_text(plan),
        plan.device_shards > 0 ? ""
                               : "; if that is what you want, say so with --gpu-weight-budget 0");
  }
  const std::optional<MemoryPlan> resident = resident_plan(input, config, config.kv_budget);
  if (resident && resident->kv_pages > plan.kv_pages) {
    return fmt::format(
        "{} and none of them moves; leave {} out, and the KV cache holds {} tokens "
        "of a rank instead of {}",
        fit, it, resident->max_sequence_tokens, plan.max_sequence_tokens);
  }
  return fmt::format("{} and none of them moves: leave {} out", fit, it);
}

}  // namespace zi
