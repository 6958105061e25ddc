#include "measure/benchmark_cell.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "zero_infer/bytes.h"

namespace zi {
namespace {

using nlohmann::ordered_json;

/// `device`, `host + nvme`, ..: where the blocks rest, fastest first.
std::string tiers_text(const std::vector<Tier>& tiers) {
  std::string text;
  for (const Tier tier : {Tier::kDevice, Tier::kHost, Tier::kNvme}) {
    if (std::ranges::find(tiers, tier) == tiers.end()) continue;
    text += (text.empty() ? "" : " + ") + std::string(name_of(tier));
  }
  return text;
}

std::string plural_of(Link link) {
  return link == Link::kCopy ? "copies" : fmt::format("{}s", key_of(link));
}

std::string split_text(const BenchmarkCell& c) {
  std::string text = fmt::format("A pass: {:.2f} msecs: compute {:.2f}", c.pass_seconds() * 1e3,
                                 c.split.compute * 1e3);
  const auto add = [&text](const std::string& what, double seconds) {
    if (seconds >= 5e-6) text += fmt::format(", {} {:.2f}", what, seconds * 1e3);
  };
  for (const Link link : kTravelLinks) {
    add(fmt::format("waiting for {}", plural_of(link)), c.split.waited[link]);
  }
  add("host", c.host_seconds());
  std::string busy;
  for (const Link link : kTravelLinks) {
    const double seconds = c.split.busy[link];
    if (seconds <= 0) continue;
    busy += fmt::format("{} {} {:.2f}", busy.empty() ? "" : ",", plural_of(link), seconds * 1e3);
  }
  return text + (busy.empty() ? "" : "; meanwhile" + busy) + "\n";
}

std::string memory_text(const BenchmarkCell& c) {
  const auto of = [](std::size_t bytes) { return format_memory(static_cast<double>(bytes)); };
  std::string text =
      fmt::format("Peak memory of a rank so far: {} on the host", of(c.peak_host_bytes));
  if (c.peak_device_bytes > 0)
    text += fmt::format("; {} of the GPU in use", of(c.peak_device_bytes));
  return text + "\n";
}

/// What else distinguishes a run whose blocks rest at the same places.
std::string travel_text(Travel travel) {
  switch (travel) {
    case Travel::kWeights:
      break;
    case Travel::kActivations:
      return ", activations travel";
    case Travel::kAuto:
      return ", weights or activations travel";
  }
  return "";
}

}  // namespace

std::string text_of(const BenchmarkCell& c, const BenchmarkSetting& s) {
  if (!c.out_of_memory.empty()) {
    return fmt::format("*** Performance stats:\nout of memory (bs={}): {}\n", c.batch,
                       c.out_of_memory);
  }
  std::string text = fmt::format(
      "*** Performance stats:\n"
      "Throughput per token including tokenize: {:.2f} msecs\n"
      "Start to ready to generate: {:.3f} secs\n"
      "Tokenize and generate {} (bs={}) tokens: {:.3f} secs\n"
      "Start to finish: {:.3f} secs\n",
      c.token_seconds() * 1e3, s.ready_seconds, c.new_tokens, c.batch, c.first_seconds,
      s.ready_seconds + c.first_seconds);
  text += split_text(c);
  for (const LinkUse& use : c.links) text += link_row(use, c.pass_seconds(), RowOf::kBenchmark);
  return text + memory_text(c);
}

std::string json_of(const BenchmarkCell& c, const BenchmarkSetting& s) {
  ordered_json line = {{"name", "published_bloom_benchmark"},
                       {"world", s.world},
                       {"command", s.command},
                       {"backend", s.backend},
                       {"device", s.device},
                       {"model", s.model},
                       {"dtype", name_of(s.dtype)},
                       {"weight_format", name_of(s.block_format)},
                       {"head_format", name_of(s.head_format)},
                       {"tier", tiers_text(s.tiers) + travel_text(s.travel)},
                       {"batch", c.batch}};
  if (!c.out_of_memory.empty()) {
    line["out_of_memory"] = c.out_of_memory;
    return line.dump();
  }
  const auto ms = [](double seconds) { return seconds * 1e3; };
  line.update({{"cycles", s.cycles},
               {"new_tokens", c.new_tokens},
               {"ms_per_token", ms(c.token_seconds())},
               {"pass_ms", ms(c.pass_seconds())},
               {"ready_s", s.ready_seconds},
               {"first_generate_s", c.first_seconds},
               {"generate_s", c.generate_seconds},
               {"finish_s", s.ready_seconds + c.first_seconds},
               {"load_s", s.load_seconds}});
  ordered_json split = {{"compute_ms", ms(c.split.compute)}};
  for (const Link link : kTravelLinks) {
    split[fmt::format("wait_{}_ms", key_of(link))] = ms(c.split.waited[link]);
  }
  split["host_ms"] = ms(c.host_seconds());
  for (const Link link : {Link::kCopy, Link::kGather}) {
    split[fmt::format("{}_ms", key_of(link))] = ms(c.split.busy[link]);
  }
  line["split"] = split;
  line["links"] = ordered_json::array();
  for (const LinkUse& use : c.links) {
    const double rate = use.bytes / c.pass_seconds();
    ordered_json link = {
        {"link", key_of(use.link)}, {"bytes_per_pass", use.bytes}, {"achieved_gb_s", rate * 1e-9}};
    if (use.limit > 0) {
      link["limit_gb_s"] = use.limit * 1e-9;
      link["ratio"] = rate / use.limit;
    }
    line["links"].push_back(link);
  }
  line["peak_host_bytes"] = c.peak_host_bytes;
  line["peak_device_bytes"] = c.peak_device_bytes;
  return line.dump();
}

}  // namespace zi
