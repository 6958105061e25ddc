#include "measure/link_use.h"

#include <fmt/format.h>

#include <algorithm>

#include "zero_infer/bytes.h"

namespace zi {
namespace {

/// With the format where the weights have fewer bits than were stored.
std::string weights_text(const MemoryPlan& plan) {
  if (!plan.block_format.packed()) return "weights multiplied";
  return fmt::format("weights multiplied ({})", name_of(plan.block_format));
}

}  // namespace

std::vector<LinkUse> link_uses(const Engine& engine, const FetchStats& fetched, double passes,
                               const RunLimits& limits) {
  const MemoryPlan& plan = engine.plan();
  double weights = static_cast<double>(plan.head_shard);
  // Where they stay, a rank multiplies its own part with the rows of all.
  const double staying = static_cast<double>(fetched.staying) / passes;
  for (const PartitionLayout& layout : plan.blocks) {
    weights += (1 - staying) * static_cast<double>(layout.gathered_bytes()) +
               staying * static_cast<double>(layout.shard_bytes());
  }
  const auto a_pass = [passes](auto x) { return static_cast<double>(x) / passes; };
  // What was read from storage is then copied, as fast as it comes: that is not a link of its own.
  const std::size_t read = fetched.bytes[Link::kRead];
  const std::size_t copied = fetched.bytes[Link::kCopy];
  std::vector<LinkUse> uses = {
      {Link::kGather, "gathered from the other ranks", a_pass(fetched.bytes[Link::kGather]),
       a_pass(fetched.gather_seconds)},
      {Link::kNetwork, "received from other hosts", a_pass(fetched.bytes[Link::kNetwork])},
      {Link::kCopy, "copied from host memory", a_pass(copied - std::min(copied, read))},
      {Link::kRead, fmt::format("read from NVMe ({})", engine.nvme_method()), a_pass(read)},
      {Link::kProducts, weights_text(plan), weights}};
  for (LinkUse& use : uses) use.limit = limits[use.link];
  std::erase_if(uses, [](const LinkUse& use) { return use.bytes <= 0; });
  return uses;
}

std::string link_row(const LinkUse& use, double pass_seconds, RowOf of) {
  const double rate = use.bytes / pass_seconds;
  std::string row = fmt::format("  {:<34} {:>9} a pass  {:>10}/s", use.what,
                                format_bytes(use.bytes), format_bytes(rate));
  if (of == RowOf::kSummary && use.busy > 0) {
    row += fmt::format(", {}/s while moving", format_bytes(use.bytes / use.busy));
  }
  if (use.limit <= 0) return row + "\n";
  const std::string limit = format_bytes(use.limit);
  if (rate > use.limit) {
    row += fmt::format("  (the bare link gave {}/s: the machine was busier then)", limit);
  } else if (of == RowOf::kSummary) {
    row += fmt::format("  (limit {}/s: {:.0f}%)", limit, 100 * rate / use.limit);
  } else {
    row += fmt::format(" of {}/s possible: {:.2f}", limit, rate / use.limit);
  }
  return row + "\n";
}

}  // namespace zi
