#include "engine/workspace_plan.h"

#include <algorithm>

#include "engine/split_ops.h"
#include "engine/staying_products.h"
#include "engine/vocabulary_head.h"

namespace zi {
namespace {

/// On the CPU backend: the most for activations and for logits, where a pass can do with fewer
/// rows.
constexpr std::size_t kHostWorkspace = 80u << 20;
constexpr std::size_t kHostHeadWorkspace = 40u << 20;

}  // namespace

void plan_workspaces(MemoryPlan& plan, const PlanInput& in, std::int64_t round_rows) {
  const auto workspace = [&] { return in.model->workspace_bytes(plan.pass_tokens, in.world); };
  const ModelConfig& c = in.model->config();
  const auto head = [&] {
    return VocabularyHead::workspace_bytes(plan, c) +
           VocabularyHead::exchange_room(plan, c).bytes();
  };
  if (in.device_is_host) {
    while (workspace() > kHostWorkspace && plan.pass_tokens > plan.lanes) {
      plan.pass_tokens = std::max(plan.lanes, plan.pass_tokens * 3 / 4);
    }
    while (head() > kHostHeadWorkspace && plan.head_rows > 1) {
      plan.head_rows = (plan.head_rows + 1) / 2;
    }
  }
  plan.workspace = workspace();
  plan.head_workspace = VocabularyHead::workspace_bytes(plan, c);
  plan.product_exchange = VocabularyHead::exchange_room(plan, c);
  if (plan.may_stay()) {
    const std::int64_t rows = round_rows > 0 ? round_rows : plan.pass_tokens;
    plan.product_exchange =
        plan.product_exchange | staying_room(plan, *in.model, std::min(rows, plan.pass_tokens));
  }
}

void plan_split_products(MemoryPlan& plan, const PlanInput& in, const RunConfig& config) {
  const bool offloads = config.cpu_offload || config.cpu_weight_budget.value_or(0) > 0;
  if (config.cpu_share == 0.0 || !offloads || (in.world > 1 && !plan.may_stay())) return;
  const SplitOps::Memory memory =
      SplitOps::memory_for(*in.model, plan.blocks, plan.compute_dtype, plan.pass_tokens * in.world);
  plan.cpu_share = config.cpu_share;
  plan.split_products = memory.device;
  plan.host_products = memory.pinned;
}

void drop_split_products(MemoryPlan& plan, const PlanInput& in, const RunConfig& config) {
  if (plan.host_shards == 0) {
    plan.cpu_share = 0.0;
    plan.split_products = plan.host_products = 0;
  }
  if (config.cpu_share == 0.0 || plan.splits()) return;
  plan.notes.push_back(
      plan.host_shards == 0 || in.world == 1
          ? "--cpu-share has no effect: no block rests in pinned host memory (--cpu-offload)"
      : config.travel == Travel::kAuto
          ? "--cpu-share has no effect where blocks are gathered: lower --kv-budget, so that they "
            "can stay"
          : "--cpu-share has no effect where blocks are gathered: give --travel activations or "
            "auto");
}

}  // namespace zi
