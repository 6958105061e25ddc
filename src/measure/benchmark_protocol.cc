#include "measure/benchmark_protocol.h"

#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "measure/summary.h"
#include "zero_infer/error.h"

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

struct Cell {
  std::int64_t batch = 0;
  std::int64_t new_tokens = 0;  // of all ranks and cycles
  std::int64_t passes = 0;
  double generate_seconds = 0;  // of all cycles
  double ready_seconds = 0;
  int signal = 0;
};

Cell run_cell(World& world, Engine& engine, std::int64_t batch,
              const std::function<int()>& signal) {
  const std::vector<std::string>& given = engine.config().prompt;
  const std::vector<std::string>& cycle_of = given.empty() ? published_prompts() : given;
  std::vector<std::string> prompts;
  const auto wanted = static_cast<std::size_t>(batch * world.size());
  while (prompts.size() < wanted) {
    prompts.push_back(cycle_of[prompts.size() % cycle_of.size()]);
  }
  Cell cell;
  cell.batch = batch;
  for (int cycle = 0; cycle <= kCycles && cell.signal == 0; ++cycle) {
    const auto source = prompts_from_flags(prompts);
    MemorySink sink;
    Engine::Job job{.source = source.get(),
                    .sink = &sink,
                    .lanes = batch,
                    .options = engine.generation_options(),
                    .stop_signal = signal};
    job.options.eos_ids.clear();
    world.barrier();
    const auto start = Clock::now();
    const Engine::Outcome outcome = engine.generate(job);
    cell.signal = outcome.signal;
    if (cycle == 0) continue;  // the warm-up
    cell.generate_seconds += seconds(Clock::now() - start);
    cell.passes += outcome.stats.passes;
    for (const Result& r : sink.results) {
      cell.new_tokens += static_cast<std::int64_t>(r.token_ids.size());
    }
  }
  return cell;
}

void print_cell(const Cell& c, double ready_seconds, double finish_seconds) {
  std::fputs(fmt::format("*** Performance stats:\n"
                         "Throughput per token including tokenize: {:.2f} msecs\n"
                         "Start to ready to generate: {:.3f} secs\n"
                         "Tokenize and generate {} (bs={}) tokens: {:.3f} secs\n"
                         "Start to finish: {:.3f} secs\n",
                         1e3 * c.generate_seconds / static_cast<double>(c.new_tokens),
                         ready_seconds, c.new_tokens, c.batch, c.generate_seconds, finish_seconds)
                 .c_str(),
             stdout);
  std::fflush(stdout);
}

}  // namespace

int run_benchmark(World& world, Engine& engine, Clock::time_point start,
                  const std::function<int()>& stop_signal, std::ostream& file) {
  const double ready = seconds(Clock::now() - start);
  const RunConfig& config = engine.config();
  const bool to_file = config.output && *config.output != "-";
  for (std::int64_t batch : config.batch_size) {
    const Cell cell = run_cell(world, engine, batch, stop_signal);
    if (cell.signal != 0) return cell.signal;
    if (world.rank() != 0) continue;
    const double finish = seconds(Clock::now() - start);
    const nlohmann::ordered_json line = {
        {"name", "published_bloom_benchmark"},
        {"world", world.size()},
        {"backend", engine.backend().name},
        {"model", config.model},
        {"dtype", name_of(engine.plan().compute_dtype)},
        {"batch", cell.batch},
        {"cycles", kCycles},
        {"new_tokens", cell.new_tokens},
        {"ms_per_token", 1e3 * cell.generate_seconds / static_cast<double>(cell.new_tokens)},
        {"pass_ms", 1e3 * cell.generate_seconds / static_cast<double>(cell.passes)},
        {"ready_s", ready},
        {"generate_s", cell.generate_seconds},
        {"finish_s", finish},
        {"load_s", engine.load_stats().seconds},
        {"peak_host_bytes", peak_memory_bytes()}};
    if (config.output && !to_file) {
      std::printf("%s\n", line.dump().c_str());
    } else {
      print_cell(cell, ready, finish);
      if (to_file && !(file << line.dump() << std::endl)) {
        throw IoError(fmt::format("{} cannot be written", *config.output));
      }
    }
  }
  return 0;
}

}  // namespace zi
