#include "plan/pass_limit.h"

#include <algorithm>
#include <cmath>

#include "zero_infer/model.h"

namespace zi {
namespace {

/// Bytes of a pass on one rank, by the links that they pass; on the CPU backend all memory is the
/// host's, and the bytes there are those of all ranks that share it.
PerLink<double> traffic_of(const MemoryPlan& plan, const ModelConfig& model,
                           const PassShape& shape) {
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
  const auto hidden = static_cast<double>(model.hidden);
  // Hidden states and logits of the head; embedding rows, in float32, of which each rank has its
  // part.
  const double exchange =
      rows * (hidden * static_cast<double>(size_of(plan.compute_dtype)) + slice * sizeof(float) +
              hidden * sizeof(float) / static_cast<double>(shape.ranks));
  const double kv = rows * static_cast<double>(shape.tokens) *
                    static_cast<double>(kv_token_bytes(model, plan.compute_dtype));

  PerLink<double> traffic;
  traffic[Link::kGather] = peers * (shards + exchange);
  traffic[Link::kCopy] = static_cast<double>(plan.host_shards + plan.nvme_shards);
  traffic[Link::kRead] = static_cast<double>(plan.nvme_shards);
  double memory = static_cast<double>(plan.head_shard) + kv;
  // Shards of the device tier are read in place or for their slot, and in it by the other ranks.
  memory += 2 * slots_filled + device_shards + peers * shards;
  if (plan.device_is_host) {
    // What is copied is read there, too, after storage has written it.
    memory += traffic[Link::kCopy] + traffic[Link::kRead];
    traffic[Link::kHostMemory] = memory * static_cast<double>(shape.ranks_per_host);
  } else {
    traffic[Link::kDeviceMemory] = memory;
  }
  return traffic;
}

/// Of a row of products with these matrices, and the bytes of them that it reads.
struct ProductWork {
  double operations = 0;
  double bytes = 0;
};

ProductWork work_of(const std::vector<PartitionLayout>& layouts) {
  ProductWork work;
  for (const PartitionLayout& layout : layouts) {
    for (const auto& m : layout.matrices()) {
      work.operations += 2 * static_cast<double>(m.tensor.elements());
      work.bytes += static_cast<double>(m.tensor.shape[0]) *
                    static_cast<double>(m.format.row_bytes(m.tensor.shape[1]));
    }
  }
  return work;
}

/// Operations per second of products with this many rows: a straight line between two measured ones
/// on logarithmic scales, which is exact where weights are streamed. For fewer rows than measured,
/// weights are streamed as well; more rows gain nothing.
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

/// Operations of products in a pass, and how many a second there can be. Rates were measured with
/// 16-bit weights, an operation for each byte of a row: where reading them is what takes the time,
/// weights of fewer bits are multiplied faster by as much.
LinkLoad products_of(const MemoryPlan& plan, const MachineLimits& limits, std::int64_t batch) {
  double best = 0;
  for (const ProductRate& p : limits.products) best = std::max(best, p.operations_rate);
  LinkLoad load{Link::kProducts, 0, 0};
  double seconds = 0;
  for (const auto* layouts : {&plan.blocks, &plan.head}) {
    const ProductWork work = work_of(*layouts);
    const double operations = work.operations * static_cast<double>(batch);
    const double rate = std::min(
        best, product_rate(limits.products, batch) * std::max(1.0, work.operations / work.bytes));
    load.amount += operations;
    seconds += rate > 0 ? operations / rate : 0;
  }
  load.rate = seconds > 0 ? load.amount / seconds : 0;
  return load;
}

/// What the links give a rank in such a pass, a second; of host memory, all ranks of a host.
PerLink<double> rates_of(const MemoryPlan& plan, const MachineLimits& limits,
                         const PassShape& shape) {
  const auto sharers = static_cast<double>(shape.ranks_per_host);
  const bool alone = shape.ranks_per_host == 1 || limits.copy_together == 0;
  PerLink<double> rates;
  rates[Link::kGather] = limits.gather_rate(plan.blocks.front().gathered_bytes());
  rates[Link::kCopy] = alone ? limits.copy_alone : limits.copy_together;
  rates[Link::kRead] = limits.best_read() / sharers;
  rates[Link::kDeviceMemory] = limits.device_memory;
  rates[Link::kHostMemory] =
      limits.host_memory > 0 ? limits.host_memory : limits.device_memory * sharers;
  return rates;
}

}  // namespace

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
  PerLink<double> amounts = traffic_of(plan, model, shape);
  PerLink<double> rates = rates_of(plan, limits, shape);
  const LinkLoad products = products_of(plan, limits, shape.batch);
  amounts[Link::kProducts] = products.amount;
  rates[Link::kProducts] = products.rate;
  PassLimit limit;
  limit.batch = shape.batch;
  limit.ranks = shape.ranks;
  for (const Link link : kLinks) {
    if (amounts[link] > 0) limit.links.push_back({link, amounts[link], rates[link]});
  }
  double best = 0;
  for (const ProductRate& p : limits.products) best = std::max(best, p.operations_rate);
  limit.products_read_weights = rates[Link::kProducts] < best / 2;
  return limit;
}

}  // namespace zi
