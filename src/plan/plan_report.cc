#include "plan/plan_report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "zero_infer/bytes.h"

namespace zi {
namespace {

/// Memory of a process that no plan counts: the program and its libraries. Measured as peaks of
/// runs minus their plans: on CPUs, on one GPU, and on two with NCCL.
constexpr std::size_t kProgramBytes = std::size_t{50} << 20;
constexpr std::size_t kCudaProgramBytes = std::size_t{450} << 20;
constexpr std::size_t kNcclProgramBytes = std::size_t{750} << 20;

std::string plural(std::int64_t count, std::string_view noun) {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s");
}

std::string memory(std::size_t bytes) { return format_memory(static_cast<double>(bytes)); }

std::string formats(const MemoryPlan& plan) {
  if (plan.head_format == plan.block_format) return describe(plan.block_format);
  return fmt::format("blocks in {}, head in {}", describe(plan.block_format),
                     describe(plan.head_format));
}

std::string header(const PlanReport& r) {
  const PlannedMachine& m = r.machine;
  std::string out = fmt::format(
      "{}: {:.3g} billion parameters, {}{}\n", r.model, r.parameters / 1e9, formats(r.plan),
      r.plan.block_format == r.plan.compute_dtype
          ? ""
          : fmt::format(", computed in {}", name_of(r.plan.compute_dtype)));
  out += fmt::format(
      "{}{}, {} backend, {}\nrates: {}\n", plural(m.ranks, "rank"),
      m.hosts() > 1
          ? fmt::format(" on {}{}", plural(m.hosts(), "host"),
                        r.plan.blocks.front().world() < m.ranks ? ", each with all weights" : "")
          : "",
      m.limits.backend, m.limits.device, m.limits.source);
  for (const std::string& note : r.notes) out += fmt::format("note: {}\n", note);
  return out;
}

std::string lanes_table(const PlanReport& r) {
  std::string lengths = "  tokens of a sequence  ";
  std::string lanes = "  lanes of a rank       ";
  for (const std::int64_t tokens : r.lengths()) {
    lengths += fmt::format("{:>8}", tokens);
    lanes += fmt::format("{:>8}", lanes_held(r.plan, tokens));
  }
  return fmt::format("\nKV cache: {} per token; lanes that it can hold\n{}\n{}\n",
                     format_bytes(static_cast<double>(r.kv_token_bytes)), lengths, lanes);
}

std::string host_lines(const PlanReport& r) {
  const auto ranks = static_cast<std::size_t>(r.machine.ranks_per_host);
  const std::size_t program = r.plan.device_is_host  ? kProgramBytes
                              : r.machine.ranks == 1 ? kCudaProgramBytes
                                                     : kNcclProgramBytes;
  std::string out = fmt::format(
      "\nMemory of a host at its peak: {} of {} (per rank {} planned, {} for the program itself)\n",
      memory(r.host_peak_bytes() + ranks * program), memory(r.machine.host_free),
      memory(r.plan.process_bytes()), memory(program));
  if (r.host_disk_bytes() > 0) {
    out += fmt::format("  shard files on its disk: {}\n",
                       format_bytes(static_cast<double>(r.host_disk_bytes())));
  }
  return out;
}

std::string operations(double count) {
  return count < 1e12 ? format_rate(count / 1e9) + " GFLOP" : format_rate(count / 1e12) + " TFLOP";
}

std::string link_line(const LinkLoad& load, bool is_bottleneck) {
  const bool products = load.link == Link::kProducts;
  const auto text = [products](double x) { return products ? operations(x) : format_bytes(x); };
  const std::string amount = text(load.amount);
  const std::string rate = load.rate == 0 ? "not known" : text(load.rate) + "/s";
  return fmt::format("  {:<14} {:>12} {:>14} {:>10}{}\n", name_of(load.link), amount, rate,
                     load.rate == 0 ? "" : format_seconds(load.seconds()),
                     is_bottleneck ? "  <- bottleneck" : "");
}

std::string pass_table(const PlanReport& r) {
  const std::int64_t held = lanes_held(r.plan, r.tokens);
  std::string out = fmt::format(
      "\nA pass of a rank: batch {}, sequences of {} tokens{}\n", r.pass.batch, r.tokens,
      held < r.pass.batch ? fmt::format(" (of which the cache holds {})", held) : "");
  for (const LinkLoad& load : r.pass.links) {
    out += link_line(load, load.seconds() > 0 && &load == &r.pass.bottleneck());
  }
  if (r.pass.stays) {
    out += fmt::format(
        "  weights stay: activations travel in {} exchanges, and a pass takes {} at least\n",
        r.pass.exchanges, format_seconds(r.pass.seconds()));
  }
  if (r.pass.host_share > 0) {
    out += fmt::format("  the host's cores multiply {:.0f}% of the weights in its memory{}\n",
                       100 * r.pass.host_share, r.plan.cpu_share ? "" : ", or what is measured");
  }
  return out;
}

std::string bottleneck_text(const PassLimit& limit) {
  const Link link = limit.bottleneck().link;
  const bool reading = link == Link::kProducts && limit.products_read_weights;
  return std::string(name_of(link)) + (reading ? ", reading weights" : "");
}

std::string batches_table(const PlanReport& r) {
  std::string out =
      fmt::format("\nThe limits ({} in all)\n  batch     a pass    tokens/s  bottleneck\n",
                  plural(r.machine.ranks, "rank"));
  for (const BatchLimit& batch : r.batches) {
    if (!batch.limit) {
      out += fmt::format("  {:>5}  does not fit with {} tokens each\n", batch.batch, r.tokens);
      continue;
    }
    out += fmt::format(
        "  {:>5} {:>10} {:>11}  {}\n", batch.batch, format_seconds(batch.limit->seconds()),
        format_rate(batch.limit->tokens_per_second()), bottleneck_text(*batch.limit));
  }
  return out;
}

}  // namespace

std::vector<std::int64_t> PlanReport::lengths() const {
  const std::set<std::int64_t> all = {256, 512, 1024, 2048, tokens};
  return {all.begin(), all.end()};
}

std::size_t PlanReport::host_peak_bytes() const {
  return plan.process_bytes() * static_cast<std::size_t>(machine.ranks_per_host);
}

std::size_t PlanReport::host_disk_bytes() const {
  return plan.nvme_shards * static_cast<std::size_t>(machine.ranks_per_host);
}

std::string format_rate(double rate) {
  if (rate < 0.9995) return fmt::format("{:.3g}", rate);
  return fmt::format("{:.{}f}", rate, rate < 9.995 ? 2 : rate < 99.95 ? 1 : 0);
}

std::string format_seconds(double seconds) {
  if (seconds >= 0.9995) return format_rate(seconds) + " s";
  if (seconds >= 0.9995e-3) return format_rate(seconds * 1e3) + " ms";
  return format_rate(seconds * 1e6) + " us";
}

std::string report_text(const PlanReport& report) {
  std::string out = header(report);
  out += fmt::format("\nWhere everything rests (one rank, batch {})\n{}\n", report.plan.lanes,
                     report.plan.table());
  out += lanes_table(report) + host_lines(report) + pass_table(report) + batches_table(report);
  out += "\nWhat would help\n";
  for (const std::string& line : report.advice) out += fmt::format("  - {}\n", line);
  return out;
}

}  // namespace zi
