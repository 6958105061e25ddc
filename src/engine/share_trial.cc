#include "engine/share_trial.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "engine/split_ops.h"
#include "engine/trial_products.h"
#include "offload/layer_fetcher.h"

namespace zi {
namespace {

constexpr int kShareRepeats = 3;  // after one to warm up
constexpr std::int64_t kShareRowsFactor = 4;
constexpr std::size_t kShareBlocks = 4;  // of a pass, as far as these bytes reach, but two at least
constexpr std::size_t kMostTrialBytes = std::size_t{4} << 30;
constexpr int kShareSlots = 2;
/// A repeat that takes longer than this is enough by itself.
constexpr double kLongSeconds = 0.5;
/// The link needs no more than this factor of what it alone would need: it is what bounds.
constexpr double kLinkNoise = 1.03;
constexpr int kMostGuesses = 4;
/// A share that gains less is none: it costs memory traffic and power.
constexpr double kLeastGain = 0.03;

/// Some units of a store, by their order here; a unit may be there twice.
class SomeUnits final : public ShardStore {
 public:
  void add(ShardStore& store, int unit) { units_.push_back({&store, unit}); }

  Tier tier() const override { return Tier::kHost; }
  void start_read(int) override {}
  void finish_read(int i, std::byte* dst, Stream& copies) override {
    const auto [store, unit] = units_[static_cast<std::size_t>(i)];
    store->finish_read(unit, dst, copies);
  }
  const std::byte* resident(int) const override { return nullptr; }
  const std::byte* on_host(int i) const override {
    const auto [store, unit] = units_[static_cast<std::size_t>(i)];
    return store->on_host(unit);
  }

 private:
  std::vector<std::pair<ShardStore*, int>> units_;
};

class ShareTrial {
 public:
  ShareTrial(Backend& backend, HostProducts& host, const Model& model, const MemoryPlan& plan,
             const ModelWeights& weights, int rank, Buffer& slots)
      : device_(backend.device.get()),
        model_(&model),
        plan_(&plan),
        memory_(device_->allocate(plan.workspace)),
        compute_(device_->make_stream("compute")),
        gathers_(device_->make_stream("gather")),
        start_(device_->make_event()),
        end_(device_->make_event()),
        ops_(std::shared_ptr<Ops>(std::shared_ptr<Ops>(), backend.ops.get()), *device_, host,
             {plan.split_products, plan.host_products}) {
    device_->zero(memory_.data(), memory_.bytes(), *compute_);
    compute_->synchronize();
    std::vector<int> units;
    for (std::size_t b = 0; b < plan.blocks.size(); ++b) {
      if (plan.tiers[b] == Tier::kHost) units.push_back(static_cast<int>(b));
    }
    std::vector<const PartitionLayout*> layouts;
    std::size_t bytes = 0;
    while (layouts.size() < kShareBlocks && (layouts.size() < 2 || bytes < kMostTrialBytes)) {
      const int unit = units[layouts.size() % units.size()];
      const auto at = static_cast<std::size_t>(unit);
      layouts.push_back(&plan.blocks[at]);
      store_.add(*weights.stores()[at], unit);
      bytes += layouts.back()->shard_bytes();
    }
    blocks_ = static_cast<double>(layouts.size());
    const std::vector<ShardStore*> stores(layouts.size(), &store_);
    Buffer own_slots(slots.data(), slots.bytes(), [](void*) {});  // they stay the caller's
    fetcher_ = std::make_unique<LayerFetcher>(*device_, backend.communicator.get(), rank, layouts,
                                              stores, kShareSlots, *gathers_, std::move(own_slots),
                                              /*only_own=*/true);
  }

  /// Of a block, when the passes before and after are like this one.
  double seconds(std::int64_t rows, double share) {
    double least = 0;
    bool enough = false;
    for (int i = 0; !enough; ++i) {
      enough = i == kShareRepeats || (i > 0 && least > kLongSeconds);
      compute_->record(*start_);
      fetcher_->run_pass(
          [&](int, const UnitWeights& weights) {
            enqueue_products(ops_, *model_, plan_->compute_dtype, weights, true, rows,
                             memory_.data(), *compute_);
          },
          *compute_, {.last = enough, .stays = true, .host_share = share});
      compute_->record(*end_);
      compute_->synchronize();
      ops_.check();
      const double took = device_->elapsed_seconds(*start_, *end_);
      least = i < 2 ? took : std::min(least, took);  // the first one is not counted
    }
    return least / blocks_;
  }

 private:
  Device* device_;
  const Model* model_;
  const MemoryPlan* plan_;
  SomeUnits store_;
  double blocks_ = 0;
  // Memory before streams: their destructors wait for the work that uses it.
  Buffer memory_;
  std::unique_ptr<Stream> compute_;
  std::unique_ptr<Stream> gathers_;
  std::unique_ptr<Event> start_;
  std::unique_ptr<Event> end_;
  SplitOps ops_;
  std::unique_ptr<LayerFetcher> fetcher_;
};

}  // namespace

ShareTime best_share(const std::function<double(double)>& seconds) {
  const double link = seconds(0);  // falls to nothing with the share
  ShareTime best{.share = 0, .seconds = link, .without = link};
  const auto measure = [&](double share) {
    const double took = seconds(share);
    if (took < best.seconds * (best.share > 0 ? 1 : 1 - kLeastGain)) {
      best.share = share;
      best.seconds = took;
    }
    return took;
  };
  struct Point {
    double share, seconds;
  };
  // Shares with which the host was the slower one, the last one lowest. A guess is where both take
  // as long: the host's time is thought to fall to nothing with its share, and once two shares were
  // tried beside the link, to follow the line through the lowest two.
  std::vector<Point> slower = {{1, measure(1)}};
  for (int guess = 0; guess < kMostGuesses; ++guess) {
    const Point high = slower.size() > 1 ? slower[slower.size() - 2] : slower.back();
    const Point low = slower.size() > 1 ? slower.back() : Point{0, 0};
    const double slope = std::max(0.0, (high.seconds - low.seconds) / (high.share - low.share));
    const double share = (link - low.seconds + slope * low.share) / (link + slope);
    if (share <= 0 || share >= slower.back().share) break;
    const double took = measure(share);
    if (took <= kLinkNoise * link * (1 - share)) break;
    if (guess == 0) slower.clear();  // there the link was idle
    slower.push_back({share, took});
  }
  return best;
}

std::vector<ShareTime> measure_host_shares(Backend& backend, HostProducts& host, const Model& model,
                                           const MemoryPlan& plan, const ModelWeights& weights,
                                           int rank, Buffer& slots) {
  ShareTrial trial(backend, host, model, plan, weights, rank, slots);
  std::vector<ShareTime> times;
  for (std::int64_t rows = 1;; rows = std::min(plan.pass_tokens, rows * kShareRowsFactor)) {
    times.push_back(best_share([&](double share) { return trial.seconds(rows, share); }));
    times.back().rows = rows;
    if (times.back().share == 0 || rows == plan.pass_tokens) return times;
  }
}

std::string describe(std::span<const ShareTime> times) {
  std::string parts;
  for (const ShareTime& t : times) {
    parts += fmt::format("{}{:.0f}% with {} row{} ({:.2f} ms a block instead of {:.2f})",
                         parts.empty() ? "" : ", ", t.share * 100, t.rows, t.rows == 1 ? "" : "s",
                         t.seconds * 1e3, t.without * 1e3);
  }
  return "of weights in host memory, its cores multiply " + parts;
}

}  // namespace zi
