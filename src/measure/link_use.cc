#include "measure/link_use.h"

#include <fmt/format.h>

#include <algorithm>

namespace zi {

std::vector<LinkUse> link_uses(const Engine& engine, const FetchStats& fetched, double passes,
                               const RunLimits& limits) {
  const MemoryPlan& plan = engine.plan();
  double weights = static_cast<double>(plan.head_shard);
  for (const PartitionLayout& layout : plan.blocks) {
    weights += static_cast<double>(layout.gathered_bytes());
  }
  const auto a_pass = [passes](auto x) { return static_cast<double>(x) / passes; };
  // What was read from storage is copied behind it, as fast as it comes: no link of its own.
  const std::size_t copied =
      fetched.copied_bytes - std::min(fetched.copied_bytes, fetched.read_bytes);
  std::vector<LinkUse> uses = {
      {"gather", "gathered from the other ranks", a_pass(fetched.gathered_bytes),
       a_pass(fetched.gather_seconds), limits.gather},
      {"copy", "copied from host memory", a_pass(copied), 0, limits.copy},
      {"read", fmt::format("read from NVMe ({})", engine.nvme_method()), a_pass(fetched.read_bytes),
       0, limits.read},
      {"weights", "weights multiplied", weights, 0, limits.product}};
  std::erase_if(uses, [](const LinkUse& use) { return use.bytes <= 0; });
  return uses;
}

}  // namespace zi
