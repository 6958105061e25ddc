#include "plan/pass_limit.h"

#include <algorithm>
#include <cmath>

namespace zi {
namespace {

/// Bytes of a pass on one rank, by where they pass.
struct Traffic {
  double gather = 0;
  double copy = 0;
  double read = 0;
  double memory = 0;  // of the device, read and written
};

Traffic traffic_of(const MemoryPlan& plan, const ModelConfig& model, const PassShape& shape) {
  const auto peers = static_cast<double>(shape.ranks - 1);
  const auto rows = static_cast<double>(shape.batch);
  double shards = 0;
  double slots_filled = 0;  // gathered bytes of the blocks that travel
  for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
    shards += static_cast<double>(plan.blocks[b].shard_bytes());
    if (shape.ranks > 1 || plan.tiers[b] != Tier::kDevice) {
      slots_filled += static_cast<double>(plan.blocks[b].gathered_bytes());
    }
  }
  const auto device_shards = static_cast<double>(plan.device_shards);
  const auto slice = static_cast<double>(plan.head.front().matrices().front().rows_per_rank);
  const double exchange =
      rows * (static_cast<double>(model.hidden) * static_cast<double>(size_of(plan.compute_dtype)) +
              slice * sizeof(float));
  const double kv = rows * static_cast<double>(shape.tokens) * 2 *
                    static_cast<double>(model.hidden * model.layers) *
                    static_cast<double>(size_of(plan.compute_dtype));

  Traffic traffic;
  traffic.gather = peers * (shards + exchange);
  traffic.copy = static_cast<double>(plan.host_shards + plan.nvme_shards);
  traffic.read = static_cast<double>(plan.nvme_shards);
  traffic.memory = static_cast<double>(plan.head_shard) + kv;
  // Shards of the device tier are read in place or for their slot, and in it by the other ranks.
  traffic.memory += 2 * slots_filled + device_shards + peers * shards;
  // In one memory with the host, what is copied is read there, too, after storage has written it.
  if (plan.device_is_host) traffic.memory += traffic.copy + traffic.read;
  return traffic;
}

double operations_of(const MemoryPlan& plan, std::int64_t batch) {
  double elements = 0;
  const auto add = [&elements](const std::vector<PartitionLayout>& layouts) {
    for (const PartitionLayout& layout : layouts) {
      for (const auto& m : layout.matrices()) elements += static_cast<double>(m.tensor.elements());
    }
  };
  add(plan.blocks);
  add(plan.head);
  return 2 * elements * static_cast<double>(batch);
}

/// Operations per second of products with so many rows: a straight line between two measured ones
/// on logarithmic scales, which is exact where weights are streamed. Fewer rows than measured are
/// streamed, too; more gain nothing.
double product_rate(const std::vector<ProductRate>& products, std::int64_t rows) {
  if (products.empty()) return 0;
  const auto above =
      std::ranges::find_if(products, [rows](const auto& p) { return p.rows >= rows; });
  if (above == products.end()) return products.back().operations_rate;
  const auto log = [](auto x) { return std::log(static_cast<double>(x)); };
  if (above == products.begin()) {
    return above->operations_rate * static_cast<double>(rows) / static_cast<double>(above->rows);
  }
  const ProductRate& below = *(above - 1);
  const double share = (log(rows) - log(below.rows)) / (log(above->rows) - log(below.rows));
  return std::exp(log(below.operations_rate) +
                  share * (log(above->operations_rate) - log(below.operations_rate)));
}

}  // namespace

std::string_view name_of(Link link) {
  switch (link) {
    case Link::kGather:
      return "gather";
    case Link::kCopy:
      return "copy";
    case Link::kRead:
      return "nvme read";
    case Link::kDeviceMemory:
      return "device memory";
    case Link::kHostMemory:
      return "host memory";
    case Link::kProducts:
      return "products";
  }
  return "";
}

const LinkLoad& PassLimit::bottleneck() const {
  return *std::ranges::max_element(links, {}, &LinkLoad::seconds);
}

double PassLimit::tokens_per_second() const {
  return seconds() > 0 ? static_cast<double>(batch * ranks) / seconds() : 0;
}

const LinkLoad* PassLimit::find(Link link) const {
  const auto found = std::ranges::find(links, link, &LinkLoad::link);
  return found == links.end() ? nullptr : &*found;
}

PassLimit pass_limit(const MemoryPlan& plan, const ModelConfig& model, const MachineLimits& limits,
                     const PassShape& shape) {
  const Traffic traffic = traffic_of(plan, model, shape);
  const auto sharers = static_cast<double>(shape.ranks_per_host);
  const bool alone = shape.ranks_per_host == 1 || limits.copy_together == 0;
  PassLimit limit;
  limit.batch = shape.batch;
  limit.ranks = shape.ranks;
  const auto add = [&limit](Link link, double amount, double rate) {
    if (amount > 0) limit.links.push_back({link, amount, rate});
  };
  add(Link::kGather, traffic.gather, limits.gather_rate(plan.blocks.front().gathered_bytes()));
  add(Link::kCopy, traffic.copy, alone ? limits.copy_alone : limits.copy_together);
  add(Link::kRead, traffic.read, limits.best_read() / sharers);
  if (plan.device_is_host) {
    const double rate =
        limits.host_memory > 0 ? limits.host_memory : limits.device_memory * sharers;
    add(Link::kHostMemory, traffic.memory * sharers, rate);
  } else {
    add(Link::kDeviceMemory, traffic.memory, limits.device_memory);
  }
  const double rate = product_rate(limits.products, shape.batch);
  add(Link::kProducts, operations_of(plan, shape.batch), rate);
  double best = 0;
  for (const ProductRate& p : limits.products) best = std::max(best, p.operations_rate);
  limit.products_read_weights = rate < best / 2;
  return limit;
}

}  // namespace zi
