#include "measure/limits_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "zero_infer/bytes.h"

namespace zi {
namespace {

/// Three digits or more.
std::string number(double value) {
  const int decimals = value >= 100 ? 0 : value >= 10 ? 1 : value >= 1 ? 2 : 3;
  return fmt::format("{:.{}f}", value, decimals);
}

std::string giga(double rate) { return number(rate * 1e-9); }

/// `4 MiB`, and `1.33 MiB` for what is not a whole number of them.
std::string size_name(std::size_t bytes) {
  for (const auto& [shift, unit] :
       {std::pair(30, "GiB"), std::pair(20, "MiB"), std::pair(10, "KiB")}) {
    const std::size_t whole = std::size_t{1} << shift;
    if (bytes >= whole && bytes % whole == 0) return fmt::format("{} {}", bytes >> shift, unit);
  }
  return format_memory(static_cast<double>(bytes));
}

std::string link_row(std::string_view what, double rate) {
  return fmt::format("  {:<56} {:>8}\n", what, rate > 0 ? giga(rate) : "-");
}

/// Sizes downwards, depths to the right.
std::string storage_table(std::string_view what, const std::vector<StorageRate>& rates) {
  std::set<int> depths;
  std::set<std::size_t> sizes;
  for (const StorageRate& r : rates) {
    depths.insert(r.depth);
    sizes.insert(r.bytes);
  }
  std::string text = fmt::format("  {:<29}", what);
  for (const int depth : depths) text += fmt::format(" {:>8}", depth);
  text += '\n';
  for (const std::size_t size : sizes) {
    text += fmt::format("    blocks of {:<17}", size_name(size));
    for (const int depth : depths) {
      const auto at = std::ranges::find_if(
          rates, [&](const StorageRate& r) { return r.depth == depth && r.bytes == size; });
      text += fmt::format(" {:>8}", at == rates.end() ? "-" : giga(at->rate));
    }
    text += '\n';
  }
  return text;
}

}  // namespace

std::string limits_text(const MachineLimits& limits) {
  const int hosts = (limits.world + limits.ranks_per_host - 1) / limits.ranks_per_host;
  std::string text = fmt::format(
      "{} rank{} on {} host{}, {} backend, {}; {} of host memory free{}\n", limits.world,
      limits.world == 1 ? "" : "s", hosts, hosts == 1 ? "" : "s", limits.backend, limits.device,
      format_memory(static_cast<double>(limits.host_bytes)),
      limits.device_bytes == 0
          ? ""
          : fmt::format(", {} on each device",
                        format_memory(static_cast<double>(limits.device_bytes))));
  text += fmt::format(
      "{}, in {:.1f} s; rates of one rank while all ranks work, unless a line says otherwise\n",
      limits.source, limits.seconds);

  text += fmt::format("\n{:<58} {:>8}\n", "memory", "GB/s");
  text += link_row("pinned memory to device, one rank alone", limits.copy_alone);
  text += link_row("pinned memory to device, all ranks at once", limits.copy_together);
  text += link_row("device memory, read and written by a copy", limits.device_memory);
  text += link_row("host memory, read and written, all ranks of a host", limits.host_memory);

  if (!limits.gather.empty()) {
    text += fmt::format("\n{:<58} {:>8}\n",
                        hosts > 1 ? "all-gather in a host: received from its other ranks"
                                  : "all-gather: received from the other ranks",
                        "GB/s");
    for (const SizedRate& r : limits.gather) {
      text += link_row(size_name(r.bytes) + " gathered", r.rate);
    }
  }
  if (!limits.network.empty()) {
    text += fmt::format("\n{:<58} {:>8}\n", "all-gather of all: received by a host from the others",
                        "GB/s");
    for (const SizedRate& r : limits.network) {
      text += link_row(size_name(r.bytes) + " gathered", r.rate);
    }
  }
  if (!limits.reads.empty()) {
    text += fmt::format("\n{} on {}: GB/s of a host, by blocks in flight\n", limits.storage_method,
                        limits.storage_path);
    text += storage_table("read", limits.reads);
    text += storage_table("written", limits.writes);
  }
  text +=
      fmt::format("\n{:<29} {:>28} {:>8}\n", "products in bfloat16", "GB/s of weights", "TFLOP/s");
  for (const ProductRate& r : limits.products) {
    text += fmt::format("  {:<27} {:>28} {:>8}\n",
                        fmt::format("{} row{}", r.rows, r.rows == 1 ? "" : "s"),
                        giga(r.weights_rate), number(r.operations_rate * 1e-12));
  }
  return text;
}

}  // namespace zi
