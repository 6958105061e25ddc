#include "measure/summary.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <vector>

#include "measure/run_limits.h"
#include "zero_infer/bytes.h"

namespace zi {
namespace {

/// What one rank has to tell; plain data for the exchange.
struct RankNumbers {
  GenerationStats generation;
  FetchStats fetched;
  std::size_t peak_bytes;
  double load_seconds;
};

/// A row of the table of links: bytes of one rank and pass, rate over the whole pass, rate while
/// busy, limit.
std::string link_row(std::string_view what, double bytes, double pass_seconds, double busy_seconds,
                     double limit) {
  if (bytes <= 0) return "";
  std::string row = fmt::format("  {:<34} {:>9} a pass  {:>10}/s", what, format_bytes(bytes),
                                format_bytes(bytes / pass_seconds));
  if (busy_seconds > 0)
    row += fmt::format(", {}/s while moving", format_bytes(bytes / busy_seconds));
  const double share = 100 * bytes / pass_seconds / limit;
  if (limit > 0 && share <= 100) {
    row += fmt::format("  (limit {}/s: {:.0f}%)", format_bytes(limit), share);
  } else if (limit > 0) {
    row += fmt::format("  (the bare link gave {}/s: the machine was busier then)",
                       format_bytes(limit));
  }
  return row + "\n";
}

}  // namespace

std::size_t peak_memory_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::size_t>(usage.ru_maxrss) * 1024;
}

std::string summarize(World& world, Engine& engine, const Engine::Outcome& outcome) {
  const RankNumbers mine{outcome.stats, outcome.fetched, peak_memory_bytes(),
                         engine.load_stats().seconds};
  std::vector<RankNumbers> all(static_cast<std::size_t>(world.size()));
  world.all_gather(&mine, all.data(), sizeof(RankNumbers));
  const std::string nvme_method = engine.nvme_method();
  const RunLimits limits = measure_run_limits(world, engine);
  if (world.rank() != 0) return "";

  GenerationStats total;
  std::size_t peak = 0;
  double load_seconds = 0;
  for (const RankNumbers& r : all) {
    total.new_tokens += r.generation.new_tokens;
    total.prompt_rows += r.generation.prompt_rows;
    total.sequences += r.generation.sequences;
    total.set_backs += r.generation.set_backs;
    total.idle_seconds = std::max(total.idle_seconds, r.generation.idle_seconds);
    total.passes = std::max(total.passes, r.generation.passes);
    total.seconds = std::max(total.seconds, r.generation.seconds);
    peak = std::max(peak, r.peak_bytes);
    load_seconds = std::max(load_seconds, r.load_seconds);
  }
  const double passes = static_cast<double>(std::max<std::int64_t>(total.passes, 1));
  const double pass_seconds = total.seconds / passes;
  const FetchStats& f = mine.fetched;
  const auto a_pass = [passes](double x) { return x / passes; };
  const MemoryPlan& plan = engine.plan();
  double weights = static_cast<double>(plan.head_shard);
  for (const PartitionLayout& layout : plan.blocks) {
    weights += static_cast<double>(layout.gathered_bytes());
  }

  std::string out = fmt::format(
      "{} sequences, {} new tokens and {} prompt tokens on {} rank{} in {:.2f} s: {:.1f} tokens/s, "
      "{} passes of {:.2f} ms{}{}\n",
      total.sequences, total.new_tokens, total.prompt_rows, world.size(),
      world.size() == 1 ? "" : "s", total.seconds,
      static_cast<double>(total.new_tokens + (engine.config().score ? total.prompt_rows : 0)) /
          std::max(total.seconds, 1e-9),
      total.passes, pass_seconds * 1e3,
      total.set_backs > 0 ? fmt::format(", {} sequences set back", total.set_backs) : "",
      total.idle_seconds > 0.1
          ? fmt::format(", and {:.1f} s without a prompt to work on", total.idle_seconds)
          : "");
  out += "bytes of rank 0, the rates beside what the bare link gave in this run:\n";
  out += link_row("gathered from the other ranks", a_pass(static_cast<double>(f.gathered_bytes)),
                  pass_seconds, a_pass(f.gather_seconds), limits.gather);
  out += link_row(
      "copied from host memory",
      plan.host_shards > 0
          ? a_pass(static_cast<double>(f.copied_bytes - std::min(f.copied_bytes, f.read_bytes)))
          : 0,
      pass_seconds, 0, limits.copy);
  out += link_row(fmt::format("read from NVMe ({})", nvme_method),
                  a_pass(static_cast<double>(f.read_bytes)), pass_seconds, 0, limits.read);
  out += link_row("weights multiplied", weights, pass_seconds, 0, limits.product);
  const double planned = static_cast<double>(plan.device_bytes() + plan.host_bytes());
  out +=
      fmt::format("loaded in {:.2f} s; peak memory of a rank {} (planned {} beside the program)",
                  load_seconds, format_memory(static_cast<double>(peak)), format_memory(planned));
  return out;
}

}  // namespace zi
