#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "plan/machine_limits.h"
#include "zero_infer/run_config.h"

namespace zi {

/// The machine that a plan is for.
struct PlannedMachine {
  int ranks = 1;
  int ranks_per_host = 1;
  std::size_t device_free = 0;     // of one device; with device_is_host, unused
  std::size_t peers_bytes = 0;     // of it, what NCCL takes where there are several ranks
  std::size_t host_free = 0;       // of one host
  MachineLimits limits;            // its backend, its device and its rates
  std::string listed;              // the name in the list of GPUs whose rates these are, or empty
  std::vector<std::string> notes;  // what was assumed

  /// The CPU backend: device memory comes out of the host's.
  bool device_is_host() const { return limits.backend == "cpu"; }
  int hosts() const { return (ranks + ranks_per_host - 1) / ranks_per_host; }
  /// The ranks that hold all weights together.
  int partition(const RunConfig& config) const {
    return config.partition_within == PartitionWithin::kHost ? ranks_per_host : ranks;
  }
  /// The same machine with this many ranks on one host.
  PlannedMachine with_ranks(int count) const;
};

/// Whether this process is to speak for all that mpirun started: it is rank 0, or there is no
/// mpirun.
bool speaks_for_job();

/// The machine that the options describe: listed GPUs, or the one that a file of limits was
/// measured on; else this one, with the limits that were kept here, or typical ones. If no number
/// of ranks was given, it is that of mpirun, or of the file. Throws ConfigError with one line for
/// options that make no machine.
PlannedMachine choose_machine(const RunConfig& config, const PlanOptions& options);

}  // namespace zi
