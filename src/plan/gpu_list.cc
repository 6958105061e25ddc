#include "plan/gpu_list.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

#include "base/suggestion.h"
#include "config/option_table.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

constexpr double kGiB = 1073741824.0;

/// How the GPUs of a host reach each other.
enum class Peers {
  kNvLink,  // at `peer_rate` in one direction, by the data sheet
  kPcie,    // directly over PCIe
  kHost,    // GeForce: through the host's memory
};

/// As the data sheet has it.
struct Gpu {
  const char* name;
  const char* device;  // for people
  const char* driver;  // the end of the name that the driver gives it
  double free_gib;     // what is left of its memory after context and workspaces
  double memory_rate;  // GB/s
  double pcie_rate;    // GB/s, x16, one direction
  Peers peers;
  double peer_rate;  // GB/s, one direction
  double bfloat16;   // dense TFLOP/s with float32 sums
};

// NVIDIA's data sheets and architecture papers: H100 and H200 Tensor Core GPU, HGX B200, A100
// Tensor Core GPU, L40S, L4, A10, RTX A6000, and the GeForce papers of Ampere, Ada and Blackwell.
constexpr auto kGpus = std::to_array<Gpu>({
    {"h100", "H100 SXM, 80 GB", "H100 80GB HBM3", 78.0, 3350, 63, Peers::kNvLink, 450, 989},
    {"h200", "H200 SXM, 141 GB", "NVIDIA H200", 138.5, 4800, 63, Peers::kNvLink, 450, 989},
    {"b200", "B200, 180 GB", "NVIDIA B200", 176.0, 7700, 63, Peers::kNvLink, 900, 2250},
    {"a100-40gb", "A100 SXM, 40 GB", "A100-SXM4-40GB", 38.0, 1555, 31.5, Peers::kNvLink, 300, 312},
    {"a100", "A100 SXM, 80 GB", "A100-SXM4-80GB", 78.0, 2039, 31.5, Peers::kNvLink, 300, 312},
    {"l40s", "L40S, 48 GB", "NVIDIA L40S", 43.4, 864, 31.5, Peers::kPcie, 0, 362},
    {"l4", "L4, 24 GB", "NVIDIA L4", 21.2, 300, 31.5, Peers::kPcie, 0, 121},
    {"a10", "A10, 24 GB", "NVIDIA A10", 21.2, 600, 31.5, Peers::kPcie, 0, 125},
    {"a6000", "RTX A6000, 48 GB", "RTX A6000", 46.4, 768, 31.5, Peers::kPcie, 0, 155},
    {"rtx5090", "GeForce RTX 5090, 32 GB", "RTX 5090", 30.4, 1792, 63, Peers::kHost, 0, 210},
    {"rtx4090", "GeForce RTX 4090, 24 GB", "RTX 4090", 22.6, 1008, 31.5, Peers::kHost, 0, 165},
    {"rtx3090", "GeForce RTX 3090, 24 GB", "RTX 3090", 22.6, 936, 31.5, Peers::kHost, 0, 71},
});

// The share of a data sheet's numbers that programs reach: a little less than was measured on H100
// (copies 0.87 of PCIe, gathers 0.78 of NVLink, memory 0.90, products' weights 0.84, arithmetic
// 0.80).
constexpr double kPcieShare = 0.8;
constexpr double kSharedPcieShare = 0.6;  // with the other GPUs of the host at work
constexpr double kNvLinkShare = 0.75;
constexpr double kPciePeerShare = 0.5;
constexpr double kHostPeerShare = 0.3;  // each byte goes up and down
constexpr double kMemoryShare = 0.85;
constexpr double kWeightsShare = 0.8;
constexpr double kArithmeticShare = 0.7;
/// An ordinary PCIe 4 drive; on hosts of H100 and H200, 1.7 to 3.0 were measured.
constexpr double kTypicalRead = 1.7;

/// Weights that stream from memory until arithmetic takes over (bfloat16: one operation a byte and
/// row).
std::vector<ProductRate> roofline(double weights_rate, double arithmetic) {
  const auto ridge = static_cast<std::int64_t>(std::ceil(arithmetic / weights_rate));
  const std::int64_t many = 4 * ridge;
  return {{1, weights_rate, weights_rate},
          {ridge, arithmetic / static_cast<double>(ridge), arithmetic},
          {many, arithmetic / static_cast<double>(many), arithmetic}};
}

MachineLimits from_data_sheet(const Gpu& gpu, int world) {
  MachineLimits limits;
  limits.source = fmt::format("data sheet of {}, at shares that are usually reached", gpu.device);
  limits.copy_alone = gpu.pcie_rate * kPcieShare * kGiga;
  limits.copy_together = gpu.pcie_rate * kSharedPcieShare * kGiga;
  const double gather = gpu.peers == Peers::kNvLink ? gpu.peer_rate * kNvLinkShare
                        : gpu.peers == Peers::kPcie ? gpu.pcie_rate * kPciePeerShare
                                                    : gpu.pcie_rate * kHostPeerShare;
  if (world > 1) limits.gather = {{std::size_t{1} << 30, gather * kGiga}};
  limits.device_memory = gpu.memory_rate * kMemoryShare * kGiga;
  limits.products =
      roofline(gpu.memory_rate * kWeightsShare * kGiga, gpu.bfloat16 * kArithmeticShare * kTera);
  return limits;
}

/// Measured on hosts with 1 H100 and with 1, 2 and 4 H200 (18 NVLinks each, PCIe 5, NCCL 2.28): two
/// GPUs copy at once as fast as one, four do not; the gathers are those of four.
MachineLimits measured(const Gpu& gpu, int world, int ranks_per_host) {
  const bool h200 = std::string_view(gpu.name) == "h200";
  MachineLimits limits;
  limits.source = fmt::format("measured on hosts with {}",
                              h200 ? "1 to 4 H200" : "an H100; gathers on one with 4 H200");
  limits.copy_alone = 55 * kGiga;
  limits.copy_together = (ranks_per_host > 2 ? 43 : 55) * kGiga;
  if (world > 1) {
    limits.gather = {
        {67'000'000, 273 * kGiga}, {537'000'000, 322 * kGiga}, {4'900'000'000, 351 * kGiga}};
  }
  limits.device_memory = (h200 ? 4280 : 3000) * kGiga;
  // Weights per second with 1 and 128 rows; from 512 rows on 790 TFLOP/s.
  const double one = (h200 ? 4.4 : 2.8) * kTera;
  const double many = (h200 ? 3.9 : 2.8) * kTera;
  limits.products = {{1, one, one},
                     {128, many, 128 * many},
                     {512, 790 * kTera / 512, 790 * kTera},
                     {2048, 790 * kTera / 2048, 790 * kTera}};
  return limits;
}

}  // namespace

std::vector<std::string> listed_gpus() {
  std::vector<std::string> names;
  for (const Gpu& gpu : kGpus) names.emplace_back(gpu.name);
  return names;
}

MachineLimits limits_of_listed_gpu(const std::string& name, int world, int ranks_per_host) {
  std::string lower = name;
  std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return std::tolower(c); });
  const auto gpu = std::ranges::find_if(kGpus, [&](const Gpu& g) { return lower == g.name; });
  if (gpu == kGpus.end()) {
    const std::string near = suggestion(lower, listed_gpus());
    throw ConfigError(
        one_line(fmt::format("--gpus-like: there is no GPU `{}` in the list{}; it has {}. For any "
                             "other GPU give --limits FILE, which zero-infer limits writes",
                             name, near, fmt::join(listed_gpus(), ", "))));
  }
  const bool known = lower == "h100" || lower == "h200";
  MachineLimits limits =
      known ? measured(*gpu, world, ranks_per_host) : from_data_sheet(*gpu, world);
  limits.backend = "cuda";
  limits.device = gpu->device;
  limits.world = world;
  limits.ranks_per_host = ranks_per_host;
  limits.device_bytes = static_cast<std::size_t>(gpu->free_gib * kGiB);
  limits.reads = {{16, std::size_t{4} << 20, kTypicalRead * kGiga}};
  return limits;
}

std::optional<std::string> listed_name(const std::string& device) {
  for (const Gpu& gpu : kGpus) {
    if (device.ends_with(gpu.driver)) return gpu.name;
  }
  return std::nullopt;
}

bool is_hopper(const std::string& name) {
  constexpr auto kNames = std::to_array<std::string_view>({"h100", "h200", "h800", "h20"});
  std::string lower;
  for (const char c : name) lower += static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  return std::ranges::any_of(
      kNames, [&](std::string_view part) { return lower.find(part) != std::string::npos; });
}

}  // namespace zi
