#include "plan/pass_limit.h"

#include <algorithm>
#include <cmath>

#include "engine/staying_products.h"

namespace zi {
namespace {

/// Of a call of an exchange that moves next to nothing: 3.6 us between two H200, by kernels that
/// store into each other's memory, from a graph. Others (GPUs on PCIe, CPUs) take collective calls:
/// NCCL's 5 to 8 us between four H200, and a few more without a graph.
constexpr double kPeerCallSeconds = 3.5e-6;
constexpr double kCallSeconds = 10e-6;
constexpr double kLeastPeerRate = 100e9;  // bytes a second of gathers: no PCIe reaches it
/// The same over several hosts. An assumption: some times the few us of a message over InfiniBand,
/// with what NCCL's proxy threads add.
constexpr double kNetworkCallSeconds = 30e-6;

/// Bytes that collective calls bring into a host from the others, for all of its ranks together.
class HostTraffic {
 public:
  HostTraffic(const MemoryPlan& plan, const PassShape& shape)
      : here_(shape.ranks_per_host), away_(std::max(0, shape.partition - shape.ranks_per_host)) {
    // NCCL's rings bring all blocks but one, see NcclCommunicator; MPI those of other hosts.
    blocks_ = plan.device_is_host || away_ == 0 ? away_ : shape.partition - 1;
  }
  /// An all-gather, of so many bytes of each rank.
  double gathered(double bytes) const { return blocks_ * bytes; }
  /// An exchange in which each rank has so many bytes for each other one.
  double exchanged(double bytes) const { return static_cast<double>(here_) * away_ * bytes; }

 private:
  int here_;
  int away_;
  int blocks_;
};

/// What the links give a rank in such a pass, a second; of host memory, all ranks of a host.
PerLink<double> rates_of(const MemoryPlan& plan, const MachineLimits& limits,
                         const PassShape& shape) {
  const auto sharers = static_cast<double>(shape.ranks_per_host);
  const bool alone = shape.ranks_per_host == 1 || limits.copy_together == 0;
  PerLink<double> rates;
  rates[Link::kGather] = limits.gather_rate(plan.blocks.front().gathered_bytes());
  rates[Link::kNetwork] = limits.network_rate(plan.blocks.front().gathered_bytes());
  rates[Link::kCopy] = alone ? limits.copy_alone : limits.copy_together;
  rates[Link::kRead] = limits.best_read() / sharers;
  rates[Link::kDeviceMemory] = limits.device_memory;
  rates[Link::kHostMemory] = limits.host_memory > 0 ? limits.host_memory
                             : plan.device_is_host  ? limits.device_memory * sharers
                                                    : 0;
  return rates;
}

/// Of the weights in host memory, what its cores multiply. The link and the cores read that memory
/// side by side: the best they can do is all of its rate.
double host_share(const MemoryPlan& plan, const MachineLimits& limits, const PassShape& shape) {
  if (!plan.splits() || (shape.partition > 1 && !plan.all_stay())) return 0;
  if (plan.cpu_share) return *plan.cpu_share;
  const PerLink<double> rates = rates_of(plan, limits, shape);
  const double memory = rates[Link::kHostMemory] / static_cast<double>(shape.ranks_per_host);
  return memory > 0 && !plan.device_is_host ? std::max(0.0, 1 - rates[Link::kCopy] / memory) : 0;
}

/// Bytes of a pass on one rank, by the links that they pass; on the CPU backend all memory is the
/// host's, and the bytes there are those of all ranks that share it.
PerLink<double> traffic_of(const MemoryPlan& plan, const ModelConfig& model, const PassShape& shape,
                           double host_share) {
  const auto peers = static_cast<double>(shape.partition - 1);
  const auto rows = static_cast<double>(shape.batch);
  const bool gathers = shape.partition > 1 && !plan.all_stay();
  double gathered = 0;      // shards of each rank
  double slots_filled = 0;  // bytes of the blocks that travel
  for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
    const PartitionLayout& block = plan.blocks[b];
    if (gathers && plan.replicated[b]) continue;
    if (gathers) gathered += static_cast<double>(block.shard_bytes());
    if (gathers || plan.tiers[b] != Tier::kDevice) {
      slots_filled += static_cast<double>(gathers ? block.gathered_bytes() : block.shard_bytes());
    }
  }
  const auto device_shards = static_cast<double>(plan.device_shards);
  const auto slice = static_cast<double>(plan.head.front().matrices().front().rows_per_rank);
  const auto hidden = static_cast<double>(model.hidden);
  // Hidden states and logits of the head; embedding rows, in float32, of which each rank has its
  // part.
  const double inputs = rows * hidden * static_cast<double>(size_of(plan.compute_dtype));
  const double results =
      rows * sizeof(float) * (slice + hidden / static_cast<double>(shape.partition));
  const double kv = rows * static_cast<double>(shape.tokens) *
                    static_cast<double>(kv_token_bytes(model, plan.compute_dtype));

  PerLink<double> traffic;
  traffic[Link::kGather] = peers * (gathered + inputs + results);
  const HostTraffic host(plan, shape);
  traffic[Link::kNetwork] = host.gathered(gathered + inputs) + host.exchanged(results);
  const double multiplied = host_share * static_cast<double>(plan.host_shards);
  slots_filled -= multiplied;
  traffic[Link::kCopy] = static_cast<double>(plan.host_shards + plan.nvme_shards) - multiplied;
  traffic[Link::kRead] = static_cast<double>(plan.nvme_shards);
  double memory = static_cast<double>(plan.head_shard) + kv;
  // Shards of the device tier are read in place or for their slot, and in it by the other ranks.
  memory += 2 * slots_filled + device_shards + peers * gathered;
  if (gathers) memory += static_cast<double>(plan.replicas);  // read in place
  if (plan.device_is_host) {
    // What is copied is read there, too, after storage has written it.
    memory += traffic[Link::kCopy] + traffic[Link::kRead] + multiplied;
    traffic[Link::kHostMemory] = memory * static_cast<double>(shape.ranks_per_host);
  } else {
    traffic[Link::kDeviceMemory] = memory;
    if (plan.splits()) {
      traffic[Link::kHostMemory] =
          static_cast<double>(plan.host_shards) * static_cast<double>(shape.ranks_per_host);
    }
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
LinkLoad products_of(const MemoryPlan& plan, const MachineLimits& limits, const PassShape& shape) {
  const std::int64_t batch = shape.batch;
  double best = 0;
  for (const ProductRate& p : limits.products) best = std::max(best, p.operations_rate);
  LinkLoad load{Link::kProducts, 0, 0};
  double seconds = 0;
  for (const auto* layouts : {&plan.blocks, &plan.head}) {
    const ProductWork work = work_of(*layouts);
    const double operations = work.operations * static_cast<double>(batch);
    // Of weights that stay, a rank multiplies its part, with the rows of all.
    const bool stay = plan.all_stay() && layouts == &plan.blocks;
    const double rate =
        std::min(best, product_rate(limits.products, stay ? batch * shape.partition : batch) *
                           std::max(1.0, work.operations / work.bytes));
    load.amount += operations;
    seconds += rate > 0 ? operations / rate : 0;
  }
  load.rate = seconds > 0 ? load.amount / seconds : 0;
  return load;
}

/// Adds what blocks exchange whose weights stay: at the rate of gathers of that size, and the time
/// of a call besides.
void add_exchanges(const MemoryPlan& plan, const Model& model, const MachineLimits& limits,
                   const PassShape& shape, PassLimit& limit, PerLink<double>& amounts,
                   PerLink<double>& rates) {
  const auto time_of = [](double bytes, double rate) { return rate > 0 ? bytes / rate : 0; };
  PerLink<double> seconds;
  for (const Link link : {Link::kGather, Link::kNetwork}) {
    seconds[link] = time_of(amounts[link], rates[link]);  // the head's
  }
  const HostTraffic host(plan, shape);
  for (const PartitionLayout& block : plan.blocks) {
    const auto ranks = static_cast<std::size_t>(block.world());
    for (const RowExchange::Row& row : staying_rows(model, block, plan.compute_dtype)) {
      const auto rows = static_cast<std::size_t>(limit.batch);
      const auto round = static_cast<std::size_t>(std::min(
          limit.batch, RowExchange::round_rows(row, plan.product_exchange, block.world())));
      for (const bool results : {false, true}) {
        const std::size_t of_row = results ? row.result : row.input;
        const auto of_rank = static_cast<double>(rows * of_row);
        const double moved = static_cast<double>(ranks - 1) * of_rank;
        const double crossed = results ? host.exchanged(of_rank) : host.gathered(of_rank);
        const std::size_t gathered = ranks * round * of_row;
        amounts[Link::kGather] += moved;
        amounts[Link::kNetwork] += crossed;
        seconds[Link::kGather] += time_of(moved, limits.gather_rate(gathered));
        seconds[Link::kNetwork] += time_of(crossed, limits.network_rate(gathered));
      }
    }
  }
  limit.exchanges = staying_cost(plan, model, limit.batch).trips;
  const auto calls = static_cast<double>(limit.exchanges);
  const double gathers = limits.gather_rate(plan.blocks.front().gathered_bytes());
  seconds[Link::kGather] += calls * (gathers >= kLeastPeerRate ? kPeerCallSeconds : kCallSeconds);
  if (rates[Link::kNetwork] > 0) seconds[Link::kNetwork] += calls * kNetworkCallSeconds;
  for (const Link link : {Link::kGather, Link::kNetwork}) {
    rates[link] = seconds[link] > 0 ? amounts[link] / seconds[link] : 0;
  }
}

}  // namespace

const LinkLoad& PassLimit::bottleneck() const {
  return *std::ranges::max_element(links, {}, &LinkLoad::seconds);
}

double PassLimit::seconds() const {
  if (!stays) return bottleneck().seconds();
  double exchanges = 0, others = 0;  // inside a host and between hosts there are exchanges at once
  for (const LinkLoad& load : links) {
    const bool exchange = load.link == Link::kGather || load.link == Link::kNetwork;
    double& slowest = exchange ? exchanges : others;
    slowest = std::max(slowest, load.seconds());
  }
  return exchanges + others;
}

double PassLimit::tokens_per_second() const {
  return seconds() > 0 ? static_cast<double>(batch * ranks) / seconds() : 0;
}

const LinkLoad* PassLimit::find(Link link) const {
  const auto found = std::ranges::find(links, link, &LinkLoad::link);
  return found == links.end() ? nullptr : &*found;
}

PassLimit pass_limit(const MemoryPlan& plan, const Model& model, const MachineLimits& limits,
                     const PassShape& shape) {
  if (plan.travel == Travel::kAuto) {
    const auto with = [&](Travel travel) {
      MemoryPlan one_way = plan;
      one_way.travel = travel;
      return pass_limit(one_way, model, limits, shape);
    };
    const PassLimit travels = with(Travel::kWeights), stays = with(Travel::kActivations);
    return stays.seconds() < travels.seconds() ? stays : travels;
  }
  const double share = host_share(plan, limits, shape);
  PerLink<double> amounts = traffic_of(plan, model.config(), shape, share);
  PerLink<double> rates = rates_of(plan, limits, shape);
  const LinkLoad products = products_of(plan, limits, shape);
  amounts[Link::kProducts] = products.amount;
  rates[Link::kProducts] = products.rate;
  PassLimit limit;
  limit.batch = shape.batch;
  limit.ranks = shape.ranks;
  limit.stays = plan.all_stay();
  limit.host_share = share;
  if (limit.stays) add_exchanges(plan, model, limits, shape, limit, amounts, rates);
  // With one rank a host, all that it gathers comes over the network.
  if (shape.ranks_per_host == 1 && rates[Link::kNetwork] > 0) amounts[Link::kGather] = 0;
  for (const Link link : kLinks) {
    if (amounts[link] > 0) limit.links.push_back({link, amounts[link], rates[link]});
  }
  double best = 0;
  for (const ProductRate& p : limits.products) best = std::max(best, p.operations_rate);
  limit.products_read_weights = rates[Link::kProducts] < best / 2;
  return limit;
}

}  // namespace zi
