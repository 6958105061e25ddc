#include "engine/travel_trial.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <span>

#include "engine/exchange_ops.h"
#include "engine/trial_products.h"
#include "offload/layer_fetcher.h"

namespace zi {
namespace {

constexpr int kRepeats = 5;  // after one to warm up
constexpr std::int64_t kRowsFactor = 4;
constexpr std::size_t kBlocks = 4;  // of a pass
constexpr int kSlots = 2;

/// Shards that rest on the device, by their order, wherever else the job has them.
class TrialStore final : public ShardStore {
 public:
  explicit TrialStore(Device& device) : device_(&device) {}
  void add(std::span<const std::byte> shard) { shards_.push_back(shard); }

  Tier tier() const override { return Tier::kDevice; }
  void start_read(int) override {}
  void finish_read(int unit, std::byte* dst, Stream& copies) override {
    const auto shard = shards_[static_cast<std::size_t>(unit)];
    device_->copy(dst, shard.data(), shard.size(), copies);
  }
  const std::byte* resident(int unit) const override {
    return shards_[static_cast<std::size_t>(unit)].data();
  }

 private:
  Device* device_;
  std::vector<std::span<const std::byte>> shards_;
};

class TravelTrial {
 public:
  TravelTrial(RankGroup& partition, Backend& backend, const Model& model, const MemoryPlan& plan,
              const ModelWeights& weights, Buffer& slots, PeerExchange* peers)
      : partition_(&partition),
        backend_(&backend),
        model_(&model),
        plan_(&plan),
        store_(*backend.device) {
    partition.all_or_none([&] { prepare(weights, slots, peers); });  // no collective call in it
  }

  /// Of a block, when the passes before and after are of the same kind.
  double seconds(std::int64_t rows, bool stay) {
    ops_->begin_pass(rows);
    double least = 0;
    for (int i = 0; i <= kRepeats; ++i) {
      compute_->record(*start_);
      fetcher_->run_pass(
          [&](int, const UnitWeights& weights) {
            enqueue_products(*ops_, *model_, plan_->compute_dtype, weights, false, rows,
                             memory_.data(), *compute_);
          },
          *compute_, {.last = i == kRepeats, .stays = stay});
      compute_->record(*end_);
      compute_->synchronize();
      const double mine = backend_->device->elapsed_seconds(*start_, *end_);
      const double slowest = std::ranges::max(partition_->all_gather(mine));
      if (i == 1 || (i > 1 && slowest < least)) least = slowest;
    }
    return least / static_cast<double>(layouts_.size());
  }

 private:
  void prepare(const ModelWeights& weights, Buffer& slots, PeerExchange* peers) {
    Device& device = *backend_->device;
    memory_ = device.allocate(plan_->workspace);
    if (peers == nullptr) exchange_memory_ = device.allocate(plan_->product_exchange.bytes());
    compute_ = device.make_stream("compute");
    exchange_ = device.make_stream("gather", StreamPriority::kFirst);
    start_ = device.make_event();
    end_ = device.make_event();
    if (peers != nullptr) {
      row_exchange_ =
          std::make_unique<RowExchange>(*peers, partition_->size(), plan_->product_exchange);
    } else {
      row_exchange_ = std::make_unique<RowExchange>(device, *backend_->ops, *backend_->communicator,
                                                    partition_->size(), exchange_memory_.data(),
                                                    plan_->product_exchange, *exchange_);
    }
    ops_ = std::make_unique<ExchangeOps>(
        std::shared_ptr<Ops>(std::shared_ptr<Ops>(), backend_->ops.get()), *row_exchange_);
    device.zero(slots.data(), slots.bytes(), *compute_);
    device.zero(memory_.data(), memory_.bytes(), *compute_);
    device.zero(exchange_memory_.data(), exchange_memory_.bytes(), *compute_);
    compute_->synchronize();
    const auto add = [&](const PartitionLayout& layout, const std::byte* shard) {
      layouts_.push_back(&layout);
      store_.add({shard, layout.shard_bytes()});
    };
    for (std::size_t b = 0; b < plan_->blocks.size() && layouts_.size() < kBlocks; ++b) {
      const std::byte* const shard = weights.stores()[b]->resident(static_cast<int>(b));
      if (shard != nullptr) add(plan_->blocks[b], shard);
    }
    // Without any on the device there is a slot more than the trial needs: as good as a shard.
    const std::size_t slot = slots.bytes() / static_cast<std::size_t>(plan_->slot_count);
    while (plan_->slot_count > kSlots && layouts_.size() < kBlocks) {
      add(plan_->blocks.front(), slots.data() + kSlots * slot);
    }
    const std::vector<ShardStore*> stores(layouts_.size(), &store_);
    Buffer own_slots(slots.data(), slots.bytes(), [](void*) {});  // they stay the caller's
    fetcher_ =
        std::make_unique<LayerFetcher>(device, backend_->communicator.get(), partition_->rank(),
                                       layouts_, stores, kSlots, *exchange_, std::move(own_slots));
  }

  RankGroup* partition_;
  Backend* backend_;
  const Model* model_;
  const MemoryPlan* plan_;
  TrialStore store_;
  std::vector<const PartitionLayout*> layouts_;
  // Memory before streams: their destructors wait for the work that uses it.
  Buffer memory_;
  Buffer exchange_memory_;
  std::unique_ptr<Stream> compute_;
  std::unique_ptr<Stream> exchange_;
  std::unique_ptr<Event> start_;
  std::unique_ptr<Event> end_;
  std::unique_ptr<RowExchange> row_exchange_;
  std::unique_ptr<ExchangeOps> ops_;
  std::unique_ptr<LayerFetcher> fetcher_;
};

}  // namespace

std::int64_t rows_to_stay(std::span<const TravelTimes> times, std::int64_t most) {
  const TravelTimes* before = nullptr;
  for (const TravelTimes& t : times) {
    if (t.staying > t.gathered) {
      if (before == nullptr) return 0;
      const double gain = before->gathered - before->staying;
      const double share = gain / (gain + t.staying - t.gathered);
      const auto further =
          static_cast<std::int64_t>(share * static_cast<double>(t.rows - before->rows));
      return std::min(most, before->rows + further);
    }
    before = &t;
  }
  return before == nullptr ? 0 : most;
}

std::vector<TravelTimes> measure_travel(RankGroup& partition, Backend& backend, const Model& model,
                                        const MemoryPlan& plan, const ModelWeights& weights,
                                        Buffer& slots, PeerExchange* peers) {
  TravelTrial trial(partition, backend, model, plan, weights, slots, peers);
  std::vector<TravelTimes> times;
  for (std::int64_t rows = 1;; rows = std::min(plan.pass_tokens, rows * kRowsFactor)) {
    times.push_back({.rows = rows,
                     .gathered = trial.seconds(rows, false),
                     .staying = trial.seconds(rows, true)});
    if (times.back().staying > times.back().gathered || rows == plan.pass_tokens) return times;
  }
}

}  // namespace zi
