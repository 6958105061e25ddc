#include "measure/limits_command.h"

#include <fmt/format.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <optional>
#include <string>

#include "base/file_roles.h"
#include "base/output_file.h"
#include "base/standard_output.h"
#include "measure/limits_text.h"
#include "measure/machine_probe.h"
#include "plan/kept_limits.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

constexpr int kFailedLate = 1;  // measured, but not printed

/// On rank 0. A cache that cannot be written is not a failure: the result has been printed.
void tell(const MachineLimits& limits, bool json_alone, OutputFile* output) {
  const std::string line = limits.to_json() + "\n";
  print(json_alone ? line : limits_text(limits));
  try {
    keep_limits(limits);
    log_info(fmt::format(
        "kept for zero-infer plan in {}",
        kept_limits_path(limits.backend, limits.world, limits.ranks_per_host).string()));
  } catch (const Error& error) {
    log_warning(
        fmt::format("not kept for zero-infer plan: {}; write a file with --output and give it to "
                    "plan with --limits",
                    error.what()));
  }
  if (output != nullptr) output->write(line);
}

}  // namespace

int run_limits_command(World& world, const LimitsOptions& options, const ProbeEffort& effort) {
  const auto start = std::chrono::steady_clock::now();
  std::optional<StorageProbe> storage;
  std::optional<OutputFile> output;
  world.all_or_none([&] {
    if (world.rank() == 0 && options.output && *options.output != "-") {
      FileRoles roles;
      roles.writes("--output", *options.output);
      roles.check();
      output.emplace(*options.output, "--output", OutputFile::Mode::kReplace);
    }
    if (world.local_rank() == 0 && !options.path.empty()) {
      storage.emplace(options.path, effort.storage);
    }
  });
  RunConfig config;
  config.backend = options.backend;
  config.cpu_offload = true;  // the CPU backend then gives copies their threads
  const Backend backend = make_backend(world, config);
  MachineLimits limits = probe_machine(world, backend, effort);
  if (!options.path.empty()) {
    probe_storage(world, backend, storage ? &*storage : nullptr, effort.storage, limits);
    limits.storage_path = options.path.string();
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  limits.seconds = took.count();
  try {
    world.all_or_none([&] {
      if (world.rank() == 0) tell(limits, options.output == "-", output ? &*output : nullptr);
    });
    return 0;
  } catch (const PeerError&) {
  } catch (const Error& error) {
    log_error(error.what());
  }
  return kFailedLate;
}

}  // namespace zi
