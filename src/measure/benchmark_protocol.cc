#include "measure/benchmark_protocol.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/system_error.h"
#include "measure/benchmark_cell.h"
#include "measure/summary.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kCycles = 5;
const std::vector<std::string>& published_prompts() {
  static const std::vector<std::string> prompts = {"DeepSpeed is a machine learning framework",
                                                   "He is working on",
                                                   "He has a",
                                                   "He got all",
                                                   "Everyone is happy and I can",
                                                   "The new movie that got Oscar this year",
                                                   "In the far far distance from our galaxy,",
                                                   "Peace is the only way"};
  return prompts;
}

double seconds(Clock::duration span) { return std::chrono::duration<double>(span).count(); }

/// The whole sweep over batch sizes.
class Benchmark {
 public:
  Benchmark(World& world, const RunConfig& config, const BenchmarkRun& run)
      : world_(&world), config_(config), run_(&run) {}

  int run() {
    load();
    measure_limits();
    std::string refused;  // when all are
    bool any = false;
    for (const std::int64_t batch : config_.batch_size) {
      BenchmarkCell cell;
      cell.batch = batch;
      cell.out_of_memory = too_large(batch);
      if (cell.out_of_memory.empty()) {
        if (const int signal = measure(cell)) return signal;
        any = true;
      } else {
        refused = fmt::format("no batch size fits; batch size {}: {}", batch, cell.out_of_memory);
      }
      if (world_->rank() == 0) show(cell);
    }
    if (!any) world_->all_or_none([&] { throw MemoryError(refused); });
    return 0;
  }

 private:
  /// Loads the model for the largest batch size that there is memory for.
  void load() {
    RunConfig attempt = config_;
    std::vector<std::int64_t>& sizes = attempt.batch_size;
    const auto backend = std::make_shared<Backend>(make_backend(*world_, config_));
    for (;;) {
      const std::int64_t largest = *std::ranges::max_element(sizes);
      try {
        engine_.emplace(*world_, backend, attempt);
        break;
      } catch (const Error& error) {
        const bool last = std::ranges::count(sizes, largest) == std::ssize(sizes);
        if (last) throw;
        refusals_.push_back({largest, refusal(error)});
        std::erase(sizes, largest);
      }
    }
    if (run_->on_ready) run_->on_ready();
    ready_ = seconds(Clock::now() - run_->start);
    for (const std::string& prompt : prompts_of_cycle()) {
      const auto ids = engine_->tokenizer().encode(prompt, !config_.no_special_tokens);
      prompt_tokens_.push_back(static_cast<std::int64_t>(ids.size()));
    }
  }

  /// Collective, after an error that has reached every rank: the message of the rank that lacks
  /// memory. Any other error is rethrown.
  std::string refusal(const Error& error) {
    if (!world_->leaving_together()) throw;  // of this rank alone
    const int mine = dynamic_cast<const MemoryError*>(&error) != nullptr ? 1 : 0;
    const std::vector<int> all = world_->all_gather(mine);
    const auto found = std::ranges::find(all, 1);
    if (found == all.end()) {
      world_->all_or_none([&] {
        if (dynamic_cast<const PeerError*>(&error) == nullptr) throw;
      });
    }
    return first_line(world_->broadcast(error.what(), static_cast<int>(found - all.begin())));
  }

  static std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

  const std::vector<std::string>& prompts_of_cycle() const {
    return config_.prompt.empty() ? published_prompts() : config_.prompt;
  }

  void measure_limits() {
    limits_ = measure_run_limits(*engine_);
    engine_->begin_passes();
  }

  /// Why there is no memory for this many lanes at once; empty when there is.
  std::string too_large(std::int64_t batch) const {
    // Where even a smaller batch was refused, this one would be.
    for (const Refusal& refusal : refusals_) {
      if (batch >= refusal.batch) return refusal.why;
    }
    // A rank takes its prompts from anywhere in the cycle: the longest ones count when they are
    // fewer than a whole cycle.
    std::vector<std::int64_t> lanes;
    for (const std::int64_t prompt : prompt_tokens_) {
      lanes.push_back(ceil_div(prompt + config_.max_new_tokens, kKvPageTokens));
    }
    std::ranges::sort(lanes, std::greater<>());
    const auto cycle = static_cast<std::int64_t>(lanes.size());
    std::int64_t pages = 0;
    for (std::int64_t i = 0; i < cycle; ++i) {
      pages += lanes[static_cast<std::size_t>(i)] * (batch / cycle + (i < batch % cycle ? 1 : 0));
    }
    if (pages <= engine_->plan().kv_pages) return "";
    return fmt::format("the KV cache holds {} tokens a rank, {} lanes need {}; raise --kv-budget",
                       engine_->plan().kv_pages * kKvPageTokens, batch, pages * kKvPageTokens);
  }

  /// One batch size. Returns the signal that came during it, or 0.
  int measure(BenchmarkCell& cell) {
    const std::vector<std::string>& cycle_of = prompts_of_cycle();
    std::vector<std::string> prompts;
    const auto wanted = static_cast<std::size_t>(cell.batch * world_->size());
    while (prompts.size() < wanted) prompts.push_back(cycle_of[prompts.size() % cycle_of.size()]);
    PassSplit split;
    FetchStats fetched;
    for (int cycle = 0; cycle <= kCycles; ++cycle) {
      const bool warm_up = cycle == 0;
      const auto source = prompts_from_flags(prompts);
      MemorySink sink;
      Engine::Job job{.source = source.get(),
                      .sink = &sink,
                      .lanes = cell.batch,
                      .options = engine_->generation_options(),
                      .stop_signal = run_->stop_signal,
                      .on_pass = [&](const PassTimes& times) {
                        if (!warm_up) split += split_of(times);
                        if (run_->trace != nullptr) run_->trace->add(times);
                      }};
      job.options.eos_ids.clear();
      // The prompts are repeated to fill the batch: each lane is to compute its own.
      job.options.share_prefixes = false;
      world_->barrier();
      const auto start = Clock::now();
      const Engine::Outcome outcome = engine_->generate(job);
      const double took = seconds(Clock::now() - start);
      if (outcome.signal != 0) return outcome.signal;
      check_all_answered(outcome.failed);
      if (warm_up) {
        cell.first_seconds = took;
        continue;
      }
      cell.generate_seconds += took;
      cell.passes += outcome.stats.passes;
      fetched += outcome.fetched;
      for (const Result& r : sink.results) {
        cell.new_tokens += static_cast<std::int64_t>(r.token_ids.size());
      }
    }
    cell.links = link_uses(*engine_, fetched, static_cast<double>(cell.passes), limits_);
    take_of_all_ranks(cell, split);
    return 0;
  }

  /// Collective. A rate over prompts that ended early would mean nothing.
  void check_all_answered(const FailedPrompts& failed) {
    if (failed.all() == 0) return;
    if (world_->rank() == 0) {
      throw Error(fmt::format(
          "{} prompts failed (named above): there is nothing to measure{}", failed.all(),
          failed.not_finite > 0 ? "; " + advice_for_not_finite(engine_->plan().compute_dtype)
                                : ""));
    }
    world_->barrier();  // rank 0 ends the job
  }

  /// Collective. The mean split of a pass and the largest memories of all ranks.
  void take_of_all_ranks(BenchmarkCell& cell, const PassSplit& split) {
    struct Mine {
      PassSplit split;
      std::size_t host_bytes;
      std::size_t device_bytes;
    };
    const Backend& backend = engine_->backend();
    const MemoryInfo device = backend.device->memory();
    const Mine mine{split, peak_memory_bytes(),
                    backend.device->is_host() ? 0 : device.total_bytes - device.free_bytes};
    for (const Mine& rank : world_->all_gather(mine)) {
      cell.split += rank.split;
      cell.peak_host_bytes = std::max(cell.peak_host_bytes, rank.host_bytes);
      cell.peak_device_bytes = std::max(cell.peak_device_bytes, rank.device_bytes);
    }
    cell.split *= 1.0 / static_cast<double>(cell.passes * world_->size());
  }

  void show(const BenchmarkCell& cell) {
    const BenchmarkSetting setting{.world = world_->size(),
                                   .backend = engine_->backend().name,
                                   .device = engine_->backend().device->name(),
                                   .model = config_.model,
                                   .command = run_->command,
                                   .dtype = engine_->plan().compute_dtype,
                                   .block_format = engine_->plan().block_format,
                                   .head_format = engine_->plan().head_format,
                                   .tiers = engine_->plan().tiers,
                                   .travel = engine_->plan().travel,
                                   .cycles = kCycles,
                                   .ready_seconds = ready_,
                                   .load_seconds = engine_->load_seconds()};
    const std::string line = json_of(cell, setting) + "\n";
    const std::string text = config_.output == "-" ? line : text_of(cell, setting);
    if (std::fputs(text.c_str(), stdout) < 0 || std::fflush(stdout) != 0) {
      throw IoError(system_error_text("standard output", "cannot be written", errno));
    }
    if (run_->output == nullptr) return;
    // Until something is measured, the old contents of the file are worth more.
    lines_ += line;
    if (!cell.out_of_memory.empty() && !measured_) return;
    measured_ = true;
    run_->output->write(std::exchange(lines_, {}));
  }

  struct Refusal {
    std::int64_t batch;
    std::string why;
  };
  World* world_;
  RunConfig config_;
  const BenchmarkRun* run_;
  std::vector<Refusal> refusals_;
  std::optional<Engine> engine_;
  RunLimits limits_;
  double ready_ = 0;
  std::vector<std::int64_t> prompt_tokens_;  // of the cycle
  std::string lines_;                        // for the output, not yet written
  bool measured_ = false;                    // a cell was written
};

}  // namespace

int run_benchmark(World& world, const RunConfig& config, const BenchmarkRun& run) {
  return Benchmark(world, config, run).run();
}

}  // namespace zi
