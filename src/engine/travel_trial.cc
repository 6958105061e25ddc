#include "engine/travel_trial.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "engine/exchange_ops.h"
#include "engine/trial_products.h"
#include "offload/layer_fetcher.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

constexpr int kMostRepeats = 5;
constexpr double kRepeatSeconds = 0.1;    // of the timed passes of one measurement
constexpr double kLongPassSeconds = 0.5;  // of a pass in which a warm-up is next to nothing
/// A device loads kernels when they are first used, which no later pass does: the time of a first
/// pass says little about the next. And the pass after it begins without what is fetched ahead.
constexpr int kFewestOnDevice = 2;
constexpr double kTrialSeconds = 0.5;
constexpr std::int64_t kRowsFactor = 4;
/// Once time is short, for the last measurement: slopes are to be seen beyond the noise.
constexpr std::int64_t kLastRowsFactor = 16;
/// Blocks of a pass, as far as so many bytes of gathered ones reach, but two at least.
constexpr std::size_t kTrialBlocks = 4;
constexpr std::size_t kHostTrialBytes = std::size_t{256} << 20;
constexpr std::size_t kDeviceTrialBytes = std::size_t{4} << 30;
constexpr int kSlots = 2;

/// Shards that rest on the device, by their order, wherever else the job has them.
class TrialStore final : public ShardStore {
 public:
  explicit TrialStore(Device& device) : device_(&device) {}
  /// `replica`: where all shards rest on the device; else null.
  void add(std::span<const std::byte> shard, const std::byte* replica) {
    shards_.push_back(shard);
    replicas_.push_back(replica);
  }

  Tier tier() const override { return Tier::kDevice; }
  void start_read(int) override {}
  void finish_read(int unit, std::byte* dst, Stream& copies) override {
    const auto shard = shards_[static_cast<std::size_t>(unit)];
    device_->copy(dst, shard.data(), shard.size(), copies);
  }
  const std::byte* resident(int unit) const override {
    return shards_[static_cast<std::size_t>(unit)].data();
  }
  const std::byte* replicated(int unit) const override {
    return replicas_[static_cast<std::size_t>(unit)];
  }

 private:
  Device* device_;
  std::vector<std::span<const std::byte>> shards_;
  std::vector<const std::byte*> replicas_;
};

/// Passes over a few blocks, all of one kind: gathered where weights do not stay, or replicated.
struct TrialPasses {
  explicit TrialPasses(Device& device) : store(device) {}
  TrialStore store;
  std::vector<const PartitionLayout*> layouts;
  std::unique_ptr<LayerFetcher> fetcher;  // null: there are no blocks of that kind
};

class TravelTrial {
 public:
  TravelTrial(RankGroup& partition, Backend& backend, const Model& model, const MemoryPlan& plan,
              const ModelWeights& weights, Buffer& slots, PeerExchange* peers)
      : partition_(&partition),
        backend_(&backend),
        model_(&model),
        plan_(&plan),
        gathered_(*backend.device),
        replicated_(*backend.device) {
    partition.all_or_none([&] { prepare(weights, slots, peers); });  // no collective call in it
  }

  /// Of a block, when the passes before and after are of the same kind.
  TrialTime measure(std::int64_t rows, bool stay) {
    ops_->begin_pass(rows);
    if (!replicated_.fetcher) return measure(gathered_, rows, stay);
    if (!gathered_.fetcher || stay) return measure(replicated_, rows, stay);
    const TrialTime gathered = measure(gathered_, rows, stay);
    const TrialTime computed = measure(replicated_, rows, stay);
    return {.block = block_seconds(gathered.block, computed.block, plan_->replicated_count(),
                                   static_cast<std::int64_t>(plan_->blocks.size())),
            .spent = gathered.spent + computed.spent};
  }

 private:
  TrialTime measure(TrialPasses& passes, std::int64_t rows, bool stay) {
    const int fewest = plan_->device_is_host ? 1 : kFewestOnDevice;
    const double first = pass_seconds(passes, rows, stay, true);
    const int repeats = trial_repeats(first, fewest);
    const std::unique_ptr<Graph> graph = repeats > 0 ? record(passes, rows, stay) : nullptr;
    TrialTime time{.block = first, .spent = repeats == 0 ? first : 0};
    for (int i = 1; i <= repeats; ++i) {
      const double took = pass_seconds(passes, rows, stay, i == repeats, graph.get());
      time.spent += took;
      time.block = i == 1 ? took : std::min(time.block, took);
    }
    time.block /= static_cast<double>(passes.layouts.size());
    return time;
  }

  void enqueue(const UnitWeights& weights, std::int64_t rows) {
    enqueue_products(*ops_, *model_, plan_->compute_dtype, weights, false, rows, memory_.data(),
                     *compute_);
  }

  /// A pass in which nothing travels to a slot, where the passes to come are recorded as well:
  /// enqueueing small products one by one takes longer than they do.
  std::unique_ptr<Graph> record(TrialPasses& passes, std::int64_t rows, bool stay) {
    const bool resident =
        std::ranges::all_of(plan_->tiers, [](Tier tier) { return tier == Tier::kDevice; });
    if (!resident || !passes.fetcher->all_resident(stay) || !row_exchange_->recordable() ||
        !backend_->ops->recordable()) {
      return nullptr;
    }
    try {
      return backend_->device->record(*compute_, [&] {
        for (int unit = 0; unit < static_cast<int>(passes.layouts.size()); ++unit) {
          enqueue(passes.fetcher->resident_weights(unit, stay), rows);
        }
      });
    } catch (const CudaError&) {
      return nullptr;
    }
  }

  /// Of one pass on the slowest rank, which all ranks know. `last`: of those of its kind. `graph`:
  /// of all that it enqueues, or null.
  double pass_seconds(TrialPasses& passes, std::int64_t rows, bool stay, bool last,
                      Graph* graph = nullptr) {
    compute_->record(*start_);
    if (graph != nullptr) {
      graph->launch(*compute_);
    } else {
      passes.fetcher->run_pass([&](int, const UnitWeights& weights) { enqueue(weights, rows); },
                               *compute_, {.last = last, .stays = stay});
    }
    compute_->record(*end_);
    compute_->synchronize();
    return std::ranges::max(
        partition_->all_gather(backend_->device->elapsed_seconds(*start_, *end_)));
  }

  void prepare(const ModelWeights& weights, Buffer& slots, PeerExchange* peers) {
    Device& device = *backend_->device;
    memory_ = device.allocate(plan_->workspace);
    if (peers == nullptr) exchange_memory_ = device.allocate(plan_->product_exchange.bytes());
    compute_ = device.make_stream("compute");
    exchange_ = device.make_stream("gather", StreamPriority::kFirst);
    start_ = device.make_event();
    end_ = device.make_event();
    row_exchange_ = std::make_unique<RowExchange>(
        device, *backend_->ops, *backend_->communicator, peers, partition_->size(),
        exchange_memory_.data(), plan_->product_exchange, *exchange_);
    ops_ = std::make_unique<ExchangeOps>(
        std::shared_ptr<Ops>(std::shared_ptr<Ops>(), backend_->ops.get()), *row_exchange_);
    device.zero(slots.data(), slots.bytes(), *compute_);
    device.zero(memory_.data(), memory_.bytes(), *compute_);
    device.zero(exchange_memory_.data(), exchange_memory_.bytes(), *compute_);
    compute_->synchronize();
    const std::size_t most = plan_->device_is_host ? kHostTrialBytes : kDeviceTrialBytes;
    const std::size_t blocks =
        std::clamp<std::size_t>(most / plan_->blocks.front().gathered_bytes(), 2, kTrialBlocks);
    for (std::size_t b = 0; b < plan_->blocks.size(); ++b) {
      const ShardStore& store = *weights.stores()[b];
      const std::byte* const shard = store.resident(static_cast<int>(b));
      TrialPasses& passes = plan_->replicated[b] ? replicated_ : gathered_;
      if (shard == nullptr || passes.layouts.size() == blocks) continue;
      passes.layouts.push_back(&plan_->blocks[b]);
      passes.store.add({shard, plan_->blocks[b].shard_bytes()},
                       store.replicated(static_cast<int>(b)));
    }
    // Without any on the device there is a slot more than the trial needs: as good as a shard.
    const std::size_t slot = slots.bytes() / static_cast<std::size_t>(plan_->slot_count);
    while (slot > 0 && plan_->slot_count > kSlots && gathered_.layouts.size() < blocks) {
      gathered_.layouts.push_back(&plan_->blocks.front());
      gathered_.store.add({slots.data() + kSlots * slot, plan_->blocks.front().shard_bytes()},
                          nullptr);
    }
    make_fetcher(gathered_, slots);
    make_fetcher(replicated_, slots);
  }

  void make_fetcher(TrialPasses& passes, Buffer& slots) {
    if (passes.layouts.empty()) return;
    Buffer own_slots(slots.data(), slots.bytes(), [](void*) {});  // they stay the caller's
    passes.fetcher = std::make_unique<LayerFetcher>(
        *backend_->device, backend_->communicator.get(), partition_->rank(), passes.layouts,
        std::vector<ShardStore*>(passes.layouts.size(), &passes.store), kSlots, *exchange_,
        std::move(own_slots));
  }

  RankGroup* partition_;
  Backend* backend_;
  const Model* model_;
  const MemoryPlan* plan_;
  // Memory before streams: their destructors wait for the work that uses it.
  Buffer memory_;
  Buffer exchange_memory_;
  std::unique_ptr<Stream> compute_;
  std::unique_ptr<Stream> exchange_;
  std::unique_ptr<Event> start_;
  std::unique_ptr<Event> end_;
  std::unique_ptr<RowExchange> row_exchange_;
  std::unique_ptr<ExchangeOps> ops_;
  TrialPasses gathered_;
  TrialPasses replicated_;
};

}  // namespace

std::int64_t rows_to_stay(std::span<const TravelTimes> times, std::int64_t most) {
  if (times.empty() || times.front().staying > times.front().gathered) return 0;
  const auto gain = [](const TravelTimes& t) { return t.gathered - t.staying; };
  // The two between which the line through both has no gain left; else the last two.
  std::size_t i = 1;
  while (i + 1 < times.size() && gain(times[i]) >= 0) ++i;
  if (i >= times.size()) return std::min(most, times.front().rows);
  const TravelTimes& below = times[i - 1];
  const TravelTimes& above = times[i];
  const double loss = gain(below) - gain(above);
  const auto most_further = static_cast<double>(most - below.rows);
  const auto step = static_cast<double>(above.rows - below.rows);
  // Where it gains more and more, or as much, there is no end.
  const double further = loss > 0 ? gain(below) / loss * step : most_further;
  return std::min(most, below.rows + static_cast<std::int64_t>(std::min(further, most_further)));
}

int trial_repeats(double first, int fewest) {
  const double fit = first > 0 ? kRepeatSeconds / first : kMostRepeats;
  const int least = first >= kLongPassSeconds ? fewest - 1 : fewest;
  return static_cast<int>(std::clamp<double>(fit, least, kMostRepeats));
}

std::vector<TravelTimes> measure_travel(std::int64_t most, const MeasureTravel& measure) {
  std::vector<TravelTimes> times;
  double spent = 0;
  const auto both_ways = [&](std::int64_t rows) {
    const TrialTime gathered = measure(rows, false), staying = measure(rows, true);
    spent += gathered.spent + staying.spent;
    return TravelTimes{.rows = rows, .gathered = gathered.block, .staying = staying.block};
  };
  for (std::int64_t rows = 1;;) {
    TravelTimes now = both_ways(rows);
    if (now.staying > now.gathered) {
      const TravelTimes again = both_ways(rows);
      now.gathered = std::min(now.gathered, again.gathered);
      now.staying = std::min(now.staying, again.staying);
    }
    times.push_back(now);
    const bool late = spent >= kTrialSeconds;
    if (now.staying > now.gathered || rows == most || (late && times.size() > 1)) return times;
    rows = std::min(most, rows * (late ? kLastRowsFactor : kRowsFactor));
  }
}

std::vector<TravelTimes> measure_travel(RankGroup& partition, Backend& backend, const Model& model,
                                        const MemoryPlan& plan, const ModelWeights& weights,
                                        Buffer& slots, PeerExchange* peers) {
  TravelTrial trial(partition, backend, model, plan, weights, slots, peers);
  return measure_travel(plan.pass_tokens,
                        [&](std::int64_t rows, bool stay) { return trial.measure(rows, stay); });
}

double block_seconds(double gathered, double computed, std::int64_t replicated,
                     std::int64_t blocks) {
  const double share = static_cast<double>(blocks - replicated) / static_cast<double>(blocks);
  return std::max(computed, share * gathered);
}

std::string describe(std::span<const TravelTimes> times, std::int64_t stay_rows,
                     const std::vector<bool>& replicated, double seconds) {
  const TravelTimes& last = times.back();
  const std::ptrdiff_t gathers = std::ranges::count(replicated, false);
  const bool all_gather = gathers == static_cast<std::ptrdiff_t>(replicated.size());
  const std::string gathered =
      all_gather     ? "gathered"
      : gathers == 0 ? "where every rank multiplies all weights"
                     : fmt::format("with {} of {} blocks gathered", gathers, replicated.size());
  const std::string measured =
      fmt::format("with {} row{} a block takes {:.3f} ms so, and {:.3f} ms {}", last.rows,
                  last.rows == 1 ? "" : "s", (stay_rows > 0 ? last.staying : last.gathered) * 1e3,
                  (stay_rows > 0 ? last.gathered : last.staying) * 1e3,
                  stay_rows > 0 ? gathered : "where they stay");
  const std::string decided =
      stay_rows > 0
          ? fmt::format("weights stay, and activations travel, in passes of up to {} rows a rank",
                        stay_rows)
      : gathers == 0 ? std::string("every rank multiplies all weights in every pass")
                     : std::string("weights travel in every pass");
  return fmt::format("{}: {} (measured in {:.2f} s)", decided, measured, seconds);
}

}  // namespace zi
