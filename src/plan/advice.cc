#include "plan/advice.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "plan/plan_report.h"
#include "zero_infer/bytes.h"

namespace zi {
namespace {

/// A change is worth a line when it makes the job this much faster.
constexpr double kWorth = 1.2;
/// Lanes are enough when they give this share of the most that any number of lanes gives.
constexpr double kNearlyAll = 0.95;
/// GPUs that hosts have at most.
constexpr int kMostGpus = 8;

std::string tokens_text(double rate) { return format_rate(rate) + " tokens/s"; }

/// Nothing is offloaded and nothing budgeted but the KV cache.
RunConfig resident(RunConfig config) {
  config.cpu_offload = false;
  config.nvme_offload_path.reset();
  config.gpu_weight_budget.reset();
  config.cpu_weight_budget.reset();
  return config;
}

class Adviser {
 public:
  Adviser(const Planner& planner, const OpenModel& open, const RunConfig& config,
          const MemoryPlan& plan, const PassLimit& base)
      : planner_(planner), open_(open), config_(config), plan_(plan), base_(base) {}

  std::vector<std::string> all() {
    if (base_.seconds() <= 0) return {"nothing can be said without rates"};
    lanes();
    kv_budget();
    tiers();
    travel();
    replicas();
    partition();
    more_ranks();
    fewer_ranks();
    bits();
    if (lines_.empty()) {
      lines_.push_back(
          fmt::format("nothing but a faster machine: {} bound{} a pass",
                      is_compute_bound() ? "matrix products" : name_of(base_.bottleneck().link),
                      is_compute_bound() ? "" : "s"));
    }
    return std::move(lines_);
  }

 private:
  bool faster(const std::optional<PassLimit>& other, double than) const {
    return other && other->tokens_per_second() >= kWorth * than;
  }
  bool is_compute_bound() const {
    return base_.bottleneck().link == Link::kProducts && !base_.products_read_weights;
  }
  bool offloads() const { return plan_.host_shards + plan_.nvme_shards > 0; }

  void lanes() {
    const std::int64_t largest = planner_.largest_batch(config_);
    if (largest < base_.batch) {
      lines_.push_back(
          largest == 0
              ? fmt::format("the KV cache holds no sequence of {} tokens: raise --kv-budget or "
                            "lower --tokens",
                            planner_.tokens())
              : fmt::format("--batch-size {}: the KV cache holds no more sequences of {} tokens at "
                            "once, others are preempted and computed again",
                            largest, planner_.tokens()));
      return;
    }
    // The fewest lanes that come near the most that any number gives.
    const std::optional<PassLimit> most = planner_.fastest(config_);
    for (const BatchLimit& batch : planner_.batches(config_)) {
      if (batch.batch <= base_.batch || !faster(batch.limit, base_.tokens_per_second())) continue;
      if (batch.limit->tokens_per_second() < kNearlyAll * most->tokens_per_second()) continue;
      const bool as_long = batch.limit->seconds() < 1.01 * base_.seconds();
      const std::string takes =
          as_long ? "just as long"
                  : fmt::format("{} instead of {}", format_seconds(batch.limit->seconds()),
                                format_seconds(base_.seconds()));
      lines_.push_back(
          fmt::format("more lanes: --batch-size {} gives {} instead of {}; a pass takes {}",
                      batch.batch, tokens_text(batch.limit->tokens_per_second()),
                      format_rate(base_.tokens_per_second()), takes));
      return;
    }
  }

  /// Lanes beyond those that the cache holds now, in memory that blocks leave where they can.
  void kv_budget() {
    const std::optional<PassLimit> now = planner_.fastest(config_);
    if (!now || is_compute_bound()) return;
    std::optional<PassLimit> best;
    RunConfig with;
    for (const bool offload : {false, true}) {
      if (offload && (plan_.device_is_host || config_.cpu_offload)) continue;
      for (const int tenths : {3, 4, 5, 6, 7, 8, 9}) {
        RunConfig other = config_;
        other.cpu_offload |= offload;
        // As it will be read from the flag.
        other.kv_budget =
            parse_size(size_flag(plan_.device_room / 10 * static_cast<std::size_t>(tenths)));
        const std::optional<PassLimit> limit = planner_.fastest(other);
        if (!limit || (best && limit->tokens_per_second() <= best->tokens_per_second())) continue;
        best = limit;
        with = other;
      }
    }
    if (!best || best->batch == 0) return;
    // What following this advice gives: the plan is made for this many lanes.
    with.batch_size = {best->batch};
    best = planner_.at(with, best->batch);
    if (!faster(best, now->tokens_per_second())) return;
    lines_.push_back(fmt::format(
        "more KV cache: {}--kv-budget {} --batch-size {} gives {}, instead of {} at most",
        with.cpu_offload && !config_.cpu_offload ? "--cpu-offload " : "",
        size_flag(*with.kv_budget), best->batch, tokens_text(best->tokens_per_second()),
        format_rate(now->tokens_per_second())));
  }

  void tiers() {
    if (!offloads()) {
      if (config_.cpu_offload || config_.nvme_offload_path) {
        lines_.push_back(
            "no offload: all blocks fit where they run, and the KV cache could have more");
      }
      return;
    }
    const auto say = [&](const std::string& how, const std::optional<PassLimit>& limit) {
      if (!faster(limit, base_.tokens_per_second())) return false;
      lines_.push_back(fmt::format("another tier: {}, a pass takes {} instead of {}", how,
                                   format_seconds(limit->seconds()),
                                   format_seconds(base_.seconds())));
      return true;
    };
    if (say("without offload all blocks stay where they run", at(resident(config_)))) return;
    if (config_.gpu_weight_budget && !plan_.device_is_host) {
      RunConfig other = config_;
      other.gpu_weight_budget.reset();
      if (say("without --gpu-weight-budget the device takes what fits", at(other))) return;
    }
    if (plan_.nvme_shards == 0) return;
    RunConfig other = config_;
    other.cpu_offload = true;
    other.cpu_weight_budget.reset();
    say(config_.cpu_weight_budget ? "with --cpu-offload and no --cpu-weight-budget"
                                  : "with --cpu-offload",
        at(other));
  }

  /// The other way for weights and activations to meet.
  void travel() {
    RunConfig other = config_;
    other.travel = base_.stays ? Travel::kWeights : Travel::kActivations;
    if (plan_.blocks.front().world() == 1) return;
    const std::optional<PassLimit> limit = at(other);
    if (!faster(limit, base_.tokens_per_second())) return;
    lines_.push_back(fmt::format("{}: --travel {}, a pass takes {} instead of {}",
                                 limit->stays ? "weights that stay" : "weights that travel",
                                 limit->stays ? "activations" : "weights",
                                 format_seconds(limit->seconds()),
                                 format_seconds(base_.seconds())));
  }

  /// Blocks whole on every rank, in what is left of its device.
  void replicas() {
    if (plan_.blocks.front().world() == 1 || !config_.replicated_blocks) return;
    RunConfig other = config_;
    other.replicated_blocks.reset();
    const std::optional<PassLimit> limit = at(other);
    if (!faster(limit, base_.tokens_per_second())) return;
    lines_.push_back(fmt::format("{}: --replicated-blocks auto, a pass takes {} instead of {}, {}",
                                 base_.stays ? "fewer exchanges" : "fewer gathers",
                                 format_seconds(limit->seconds()), format_seconds(base_.seconds()),
                                 tokens_text(limit->tokens_per_second())));
  }

  /// Hosts that need no network, or the memory of all of them.
  void partition() {
    if (planner_.machine().hosts() == 1) return;
    RunConfig other = config_;
    const bool job = config_.partition_within == PartitionWithin::kJob;
    other.partition_within = job ? PartitionWithin::kHost : PartitionWithin::kJob;
    std::string flags = fmt::format("--partition-within {}", name_of(other.partition_within));
    std::optional<PassLimit> limit = at(other);
    if (!limit && !config_.cpu_offload && !plan_.device_is_host) {
      other.cpu_offload = true;
      flags += " --cpu-offload";
      limit = at(other);
    }
    if (!faster(limit, base_.tokens_per_second())) return;
    lines_.push_back(fmt::format(
        "{}: {}, a pass takes {} instead of {}, {}",
        job ? "no weights on the network, each host holds all" : "the memory of all hosts together",
        flags, format_seconds(limit->seconds()), format_seconds(base_.seconds()),
        tokens_text(limit->tokens_per_second())));
  }

  void more_ranks() {
    const PlannedMachine& machine = planner_.machine();
    if (!offloads() || machine.device_is_host() || machine.hosts() > 1) return;
    for (int ranks = 2 * machine.ranks; ranks <= kMostGpus; ranks *= 2) {
      const Planner planner(open_, machine.with_ranks(ranks), planner_.tokens());
      const std::optional<PassLimit> limit = planner.at(resident(config_), base_.batch);
      if (!limit || limit->find(Link::kGather)->rate == 0) continue;
      if (!faster(limit, base_.tokens_per_second())) continue;
      lines_.push_back(
          fmt::format("more ranks: {} hold all blocks on their devices: a pass takes {}, {}", ranks,
                      format_seconds(limit->seconds()), tokens_text(limit->tokens_per_second())));
      return;
    }
  }

  void fewer_ranks() {
    const int ranks = planner_.machine().ranks;
    if (ranks == 1 || planner_.machine().device_is_host()) return;
    const Planner alone(open_, planner_.machine().with_ranks(1), planner_.tokens());
    const std::optional<PassLimit> limit = alone.at(resident(config_), base_.batch);
    if (!limit) return;
    const double together = limit->tokens_per_second() * ranks;
    if (together < kWorth * base_.tokens_per_second()) return;
    lines_.push_back(fmt::format(
        "less travel: one rank can hold the model, so {} jobs of one rank each give {} together",
        ranks, tokens_text(together)));
  }

  /// Blocks of fewer bits than they have now, planned anew: what they leave free, others may take.
  void bits() {
    if (is_compute_bound() || open_.packed_blocks) return;  // these stay as they are stored
    std::string gives;
    double worth = base_.tokens_per_second();  // the next format is to give this much more
    for (const auto& [choice, name] :
         {std::pair{WeightChoice::kInt8, "int8"}, {WeightChoice::kInt4, "int4"}}) {
      RunConfig other = config_;
      other.weight_format = choice;
      if (bytes_a_row(weight_formats(open_, other).blocks) >= bytes_a_row(plan_.block_format)) {
        continue;
      }
      const std::optional<PassLimit> limit = at(other);
      if (!faster(limit, worth)) continue;
      worth = limit->tokens_per_second();
      gives += gives.empty()
                   ? fmt::format(
                         "--weight-format {} gives {} instead of {}, a pass takes {} "
                         "instead of {}",
                         name, tokens_text(worth), format_rate(base_.tokens_per_second()),
                         format_seconds(limit->seconds()), format_seconds(base_.seconds()))
                   : fmt::format("; {} gives {}", name, tokens_text(worth));
    }
    if (!gives.empty()) lines_.push_back("fewer bits: " + gives + "; answers differ a little");
  }
  std::size_t bytes_a_row(const WeightFormat& format) const {
    return format.row_bytes(open_.model->config().hidden);
  }

  std::optional<PassLimit> at(const RunConfig& config) const {
    return planner_.at(config, base_.batch);
  }
  /// As --kv-budget reads it.
  static std::string size_flag(std::size_t bytes) {
    constexpr double kMiB = 1048576;
    const double mib = static_cast<double>(bytes) / kMiB;
    return mib >= 10240 ? fmt::format("{:.0f}GiB", std::floor(mib / 1024))
                        : fmt::format("{:.0f}MiB", std::floor(mib));
  }

  const Planner& planner_;
  const OpenModel& open_;
  const RunConfig& config_;
  const MemoryPlan& plan_;
  const PassLimit& base_;
  std::vector<std::string> lines_;
};

}  // namespace

std::vector<std::string> advice_for(const Planner& planner, const OpenModel& open,
                                    const RunConfig& config, const MemoryPlan& plan,
                                    const PassLimit& base) {
  return Adviser(planner, open, config, plan, base).all();
}

}  // namespace zi
