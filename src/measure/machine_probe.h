#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "engine/backend_choice.h"
#include "measure/storage_probe.h"
#include "plan/machine_limits.h"
#include "zero_infer/world.h"

namespace zi {

/// How much effort goes into measuring a machine: these defaults take under a minute. Tests take
/// less.
struct ProbeEffort {
  double seconds = 3;                             // of each part, roughly
  std::size_t most_bytes = std::size_t{2} << 30;  // of one buffer; the gathers' apart
  std::vector<std::size_t> gathers = {            // gathered bytes, ascending
      std::size_t{16} << 20, std::size_t{64} << 20, std::size_t{256} << 20, std::size_t{1} << 30,
      std::size_t{4} << 30};
  std::vector<std::int64_t> rows = {1, 8, 16, 64, 256, 1024, 2048};  // of products, ascending
  StorageEffort storage;
};

/// Collective. Measures everything but the storage, bare, through the same parts as a run with
/// `--cpu-offload` uses: the device's copies, the communicator's gathers (in memory of its own, in
/// place; where there are several hosts, inside each and over all of them), the products. Progress
/// goes to the log of rank 0. Sizes that do not fit into a share of the free memory, or would take
/// too long, are left out of the lists. Throws ConfigError when a rank has too little free memory
/// to measure anything. `seconds` stays 0.
MachineLimits probe_machine(World& world, const Backend& backend, const ProbeEffort& effort);

/// Collective. Adds the storage: the first rank of each host has a probe (null elsewhere) and
/// measures alone. Of several hosts the slowest counts.
void probe_storage(World& world, const Backend& backend, StorageProbe* probe,
                   const StorageEffort& effort, MachineLimits& limits);

}  // namespace zi
