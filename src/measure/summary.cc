#include "measure/summary.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "measure/link_use.h"
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

/// More hosts than this are not listed one by one.
constexpr int kMostHostLines = 4;

/// What hosts received from each other: exact numbers, for counters of network cards.
std::string network_lines(const RankHosts& hosts, const std::vector<RankNumbers>& ranks,
                          double passes) {
  if (hosts.count() == 1) return "";
  std::vector<std::uint64_t> received(static_cast<std::size_t>(hosts.count()));
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    received[static_cast<std::size_t>(hosts.host_of(static_cast<int>(r)))] +=
        ranks[r].fetched.bytes[Link::kNetwork];
  }
  const auto line = [&](std::string_view whose, std::uint64_t bytes) {
    return fmt::format("  {} received {} a pass over the network, {} bytes in all\n", whose,
                       format_bytes(static_cast<double>(bytes) / passes), bytes);
  };
  std::string lines;
  for (int h = 0; hosts.count() <= kMostHostLines && h < hosts.count(); ++h) {
    lines += line(fmt::format("the host of rank {}", hosts.ranks_of(h).front()),
                  received[static_cast<std::size_t>(h)]);
  }
  if (!lines.empty()) return lines;
  return line(fmt::format("of {} hosts the one that got most", hosts.count()),
              std::ranges::max(received));
}

}  // namespace

std::size_t peak_memory_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::size_t>(usage.ru_maxrss) * 1024;
}

std::string summarize(World& world, Engine& engine, const Engine::Outcome& outcome) {
  const RankNumbers mine{outcome.stats, outcome.fetched, peak_memory_bytes(),
                         engine.load_seconds()};
  const std::vector<RankNumbers> all = world.all_gather(mine);
  GenerationStats total;
  std::size_t peak = 0;
  double load_seconds = 0;
  for (const RankNumbers& r : all) {
    total.new_tokens += r.generation.new_tokens;
    total.prompt_rows += r.generation.prompt_rows;
    total.cached_tokens += r.generation.cached_tokens;
    total.sequences += r.generation.sequences;
    total.preemptions += r.generation.preemptions;
    total.failed.refused += r.generation.failed.refused;
    total.failed.not_finite += r.generation.failed.not_finite;
    total.idle_seconds = std::max(total.idle_seconds, r.generation.idle_seconds);
    total.passes = std::max(total.passes, r.generation.passes);
    total.seconds = std::max(total.seconds, r.generation.seconds);
    peak = std::max(peak, r.peak_bytes);
    load_seconds = std::max(load_seconds, r.load_seconds);
  }
  const double planned = static_cast<double>(engine.plan().process_bytes());
  const std::string loaded = fmt::format(
      "loaded in {:.2f} s; peak memory of a rank {} (planned {}, the program itself not counted)",
      load_seconds, format_memory(static_cast<double>(peak)), format_memory(planned));
  // Then no weights were read in a pass, and there are no rates.
  if (total.prompt_rows == 0) return world.rank() == 0 ? "no prompt was computed; " + loaded : "";
  const RunLimits limits = measure_run_limits(engine);
  if (world.rank() != 0) return "";

  const double passes = static_cast<double>(std::max<std::int64_t>(total.passes, 1));
  const double pass_seconds = total.seconds / passes;
  const MemoryPlan& plan = engine.plan();

  std::string out = fmt::format(
      "{} sequences{}, {} new tokens and {} prompt tokens{} on {} rank{} in {:.2f} s: {:.1f} "
      "tokens/s, "
      "{} passes of {:.2f} ms{}{}\n",
      total.sequences,
      total.failed.all() > 0 ? fmt::format(" ({} failed)", total.failed.all()) : "",
      total.new_tokens, total.prompt_rows,
      total.cached_tokens > 0
          ? fmt::format(" ({} more were taken from shared pages)", total.cached_tokens)
          : "",
      world.size(), world.size() == 1 ? "" : "s", total.seconds,
      static_cast<double>(total.new_tokens + (engine.config().score ? total.prompt_rows : 0)) /
          std::max(total.seconds, 1e-9),
      total.passes, pass_seconds * 1e3,
      total.preemptions > 0 ? fmt::format(", {} sequences preempted", total.preemptions) : "",
      total.idle_seconds > 0.1
          ? fmt::format(", and {:.1f} s without a prompt to work on", total.idle_seconds)
          : "");
  out += "what rank 0 moved (limit: what the bare link gave in this run):\n";
  for (const LinkUse& use : link_uses(engine, mine.fetched, passes, limits)) {
    out += link_row(use, pass_seconds, RowOf::kSummary);
  }
  out += network_lines(world.hosts(), all, passes);
  if (engine.partition().size() > 1 && plan.travel != Travel::kWeights) {
    out += fmt::format(
        "weights stayed in {} of {} passes; rank 0 received {} of activations a "
        "pass, in {:.0f} exchanges\n",
        mine.fetched.staying, total.passes,
        format_bytes(static_cast<double>(outcome.exchanged.bytes) / passes),
        static_cast<double>(outcome.exchanged.trips) / passes);
  }
  if (plan.splits()) {
    const double bytes = static_cast<double>(mine.fetched.host_bytes) / passes;
    out += fmt::format(
        "the cores of rank 0's host multiplied {} of weights a pass where they rest, {:.0f}% of "
        "those in its memory\n",
        format_bytes(bytes), 100 * bytes / static_cast<double>(plan.host_shards));
  }
  return out + loaded;
}

}  // namespace zi
