#include "plan/planned_machine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <thread>

#include "base/system_error.h"
#include "config/option_table.h"
#include "engine/backend_choice.h"
#include "plan/gpu_list.h"
#include "plan/kept_limits.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// As NCCL 2.28 took between two H200.
constexpr std::size_t kNcclBytes = std::size_t{1536} << 20;

/// A count that Open MPI's mpirun tells its processes; 0 without it.
int from_mpirun(const char* variable) {
  const char* const text = std::getenv(variable);
  return text == nullptr ? 0 : std::max(0, std::atoi(text));
}

MachineLimits read_limits(const std::string& path) {
  errno = 0;
  std::ifstream file(path);
  std::error_code ignored;
  const bool folder = std::filesystem::is_directory(path, ignored);
  const std::string text =
      folder ? std::string() : std::string{std::istreambuf_iterator<char>(file), {}};
  if (file.bad() || text.empty()) {
    const std::string why = folder       ? "it is a directory"
                            : errno != 0 ? system_message(errno)
                                         : "it is empty";
    throw ConfigError(one_line(fmt::format(
        "--limits {} cannot be read: {}; zero-infer limits --output FILE.json writes one", path,
        why)));
  }
  try {
    return MachineLimits::from_json(text, path);
  } catch (const ConfigError& error) {
    throw ConfigError(one_line(fmt::format("--limits: {}", error.what())));
  }
}

/// For CPUs: what machines of 2 to 32 cores were measured at, shared by the ranks of a host.
MachineLimits typical_cpu(int world, int ranks_per_host) {
  const auto cores = static_cast<double>(std::max(1u, std::thread::hardware_concurrency()));
  const auto sharers = static_cast<double>(ranks_per_host);
  MachineLimits limits;
  limits.copy_alone = 7 * kGiga;
  limits.copy_together = std::min(7.0, 50 / sharers) * kGiga;
  if (world > 1) limits.gather = {{std::size_t{64} << 20, 6 * kGiga}};
  limits.host_memory = std::min(15 * cores, 120.0) * kGiga;
  limits.device_memory = limits.host_memory / sharers;
  limits.reads = {{16, std::size_t{4} << 20, 1.7 * kGiga}};
  const double weights = std::min(9 * cores, 60.0) / sharers * kGiga;
  const double arithmetic = 200 * cores / sharers * kGiga;
  const auto ridge = std::max<std::int64_t>(2, static_cast<std::int64_t>(arithmetic / weights));
  limits.products = {{1, weights, weights},
                     {ridge, arithmetic / static_cast<double>(ridge), arithmetic}};
  return limits;
}

/// Rates for the devices of this host that nobody has measured.
MachineLimits typical_limits(PlannedMachine& machine, const DeviceSurvey& survey) {
  constexpr const char* kAdvice = "zero-infer limits measures this machine";
  MachineLimits limits;
  if (survey.device_is_host()) {
    limits = typical_cpu(machine.ranks, machine.ranks_per_host);
    limits.source = fmt::format("typical of this number of cores; {}", kAdvice);
    return limits;
  }
  const std::optional<std::string> listed = listed_name(survey.device);
  machine.listed = listed.value_or("l4");
  limits = limits_of_listed_gpu(machine.listed, machine.ranks, machine.ranks_per_host);
  limits.source = fmt::format("typical of {}; {}", listed ? *listed : "a slow card", kAdvice);
  return limits;
}

/// The limits of this host that were kept for this many ranks.
std::optional<MachineLimits> kept(PlannedMachine& machine, const DeviceSurvey& survey) {
  try {
    std::optional<MachineLimits> limits =
        find_kept_limits(survey.backend, machine.ranks, machine.ranks_per_host);
    if (!limits) return limits;
    // Different hosts may have the same name, and homes are shared.
    if (limits->backend == survey.backend && limits->device == survey.device &&
        limits->world == machine.ranks && limits->ranks_per_host == machine.ranks_per_host) {
      return limits;
    }
    machine.notes.push_back(one_line(
        fmt::format("the kept limits are of another machine ({}, {} ranks) and are not used",
                    limits->device, limits->world)));
    return std::nullopt;
  } catch (const Error& error) {
    machine.notes.push_back(
        one_line(fmt::format("the kept limits are not used: {}", error.what())));
    return std::nullopt;
  }
}

void choose_ranks(PlannedMachine& machine, const PlanOptions& options, const MachineLimits* file) {
  const int started = from_mpirun("OMPI_COMM_WORLD_SIZE");
  int on_host = 0;
  if (options.ranks > 0) {
    machine.ranks = static_cast<int>(options.ranks);
    // A file of several hosts says how many ranks such a host has, whatever their number.
    const bool as_measured =
        file != nullptr &&
        (file->world == machine.ranks ||
         (file->world > file->ranks_per_host && machine.ranks % file->ranks_per_host == 0));
    if (as_measured) on_host = file->ranks_per_host;
  } else if (started > 0) {
    machine.ranks = started;
    on_host = from_mpirun("OMPI_COMM_WORLD_LOCAL_SIZE");
  } else if (file != nullptr) {
    machine.ranks = file->world;
    on_host = file->ranks_per_host;
  }
  if (options.ranks_per_host > 0) on_host = static_cast<int>(options.ranks_per_host);
  machine.ranks_per_host = on_host > 0 ? on_host : machine.ranks;
  if (machine.ranks_per_host > machine.ranks || machine.ranks % machine.ranks_per_host != 0) {
    throw ConfigError(fmt::format(
        "--ranks {} cannot be spread over hosts of --ranks-per-host {}; give a divisor of {}",
        machine.ranks, machine.ranks_per_host, machine.ranks));
  }
}

void check_options(const RunConfig& config, const PlanOptions& options) {
  if (options.gpus_like.empty()) return;
  if (options.limits) {
    throw ConfigError("--gpus-like and --limits both say what the machine is; give one of them");
  }
  if (config.backend == BackendChoice::kCpu) {
    throw ConfigError("--gpus-like plans for GPUs and --backend cpu for none; give one of them");
  }
}

void take_file(PlannedMachine& machine, const RunConfig& config, const PlanOptions& options,
               MachineLimits file) {
  const bool wants_cpu = config.backend == BackendChoice::kCpu;
  const bool wants_cuda = config.backend == BackendChoice::kCuda;
  if ((wants_cpu && file.backend != "cpu") || (wants_cuda && file.backend != "cuda")) {
    throw ConfigError(
        one_line(fmt::format("--limits {} was measured with the {} backend; leave out --backend, "
                             "or measure with that backend",
                             *options.limits, file.backend)));
  }
  if (file.world != machine.ranks) {
    machine.notes.push_back(fmt::format("the limits were measured with {} rank{}, not {}",
                                        file.world, file.world == 1 ? "" : "s", machine.ranks));
  }
  if (file.world > 1 && machine.ranks > 1 && file.ranks_per_host != machine.ranks_per_host) {
    machine.notes.push_back(fmt::format("the limits were measured with {} rank{} a host, not {}",
                                        file.ranks_per_host, file.ranks_per_host == 1 ? "" : "s",
                                        machine.ranks_per_host));
  }
  if (machine.ranks_per_host > 1 && file.gather.empty()) {
    throw ConfigError(one_line(fmt::format(
        "--limits {} was measured with {} rank{} a host and holds no gathers, which {} ranks a "
        "host need; measure with as many: mpirun -np {} zero-infer limits",
        *options.limits, file.ranks_per_host, file.ranks_per_host == 1 ? "" : "s",
        machine.ranks_per_host, machine.ranks_per_host)));
  }
  const bool several = machine.hosts() > 1 && config.partition_within == PartitionWithin::kJob;
  if (several && file.gather.empty() && file.network.empty() && !config.network) {
    throw ConfigError(one_line(fmt::format(
        "--limits {} holds neither gathers nor a network, which {} hosts need; give --network "
        "25GB/s, or measure on these hosts",
        *options.limits, machine.hosts())));
  }
  if (config.nvme_offload_path && file.reads.empty()) {
    throw ConfigError(one_line(fmt::format(
        "--limits {} holds no reads of storage, which --nvme-offload-path needs; measure with "
        "zero-infer limits --path DIR",
        *options.limits)));
  }
  machine.device_free = file.device_bytes;
  machine.host_free = file.host_bytes;
  machine.limits = std::move(file);
}

void take_this_machine(PlannedMachine& machine, const RunConfig& config) {
  const DeviceSurvey survey = survey_devices(config.backend, machine.ranks_per_host);
  machine.device_free = survey.device_free;
  machine.peers_bytes = kNcclBytes;
  machine.host_free = survey.host_free;
  if (!survey.device_is_host() && survey.gpus < machine.ranks_per_host) {
    machine.notes.push_back(fmt::format("this host has {} GPU{}: the plan is for {} like it",
                                        survey.gpus, survey.gpus == 1 ? "" : "s",
                                        machine.ranks_per_host));
  }
  if (std::optional<MachineLimits> limits = kept(machine, survey)) {
    machine.limits = std::move(*limits);
  } else {
    machine.limits = typical_limits(machine, survey);
  }
  machine.limits.backend = survey.backend;
  machine.limits.device = survey.device;
}

/// What is given wins over what was measured.
void take_network(PlannedMachine& machine, const RunConfig& config) {
  constexpr std::size_t kAnySize = std::size_t{1} << 30;
  if (config.network) machine.limits.network = {{kAnySize, *config.network}};
  if (machine.hosts() == 1) {
    if (config.network) {
      machine.notes.push_back(
          "--network has no effect on a plan for one host: see --ranks-per-host");
    }
    machine.limits.network.clear();
  } else if (machine.limits.network.empty() && config.partition_within == PartitionWithin::kJob) {
    machine.notes.push_back(
        "gathers are taken to be as fast between hosts as within one: the network may be slower; "
        "give --network 25GB/s, or what zero-infer limits measures on these hosts");
  }
}

}  // namespace

PlannedMachine PlannedMachine::with_ranks(int count) const {
  PlannedMachine other = *this;
  other.ranks = count;
  other.ranks_per_host = count;
  other.limits.network.clear();
  if (!listed.empty()) other.limits = limits_of_listed_gpu(listed, count, count);
  return other;
}

bool speaks_for_job() { return from_mpirun("OMPI_COMM_WORLD_RANK") == 0; }

PlannedMachine choose_machine(const RunConfig& config, const PlanOptions& options) {
  check_options(config, options);
  std::optional<MachineLimits> file;
  if (options.limits) file = read_limits(*options.limits);
  PlannedMachine machine;
  choose_ranks(machine, options, file ? &*file : nullptr);
  if (!options.gpus_like.empty()) {
    machine.limits = limits_of_listed_gpu(options.gpus_like, machine.ranks, machine.ranks_per_host);
    machine.listed = options.gpus_like;
    machine.device_free = machine.limits.device_bytes;
    machine.peers_bytes = kNcclBytes;
    if (!options.host_memory) {
      machine.host_free = survey_devices(BackendChoice::kCpu, 1).host_free;
      machine.notes.push_back("the host's memory is taken from this machine: see --host-memory");
    }
  } else if (file) {
    take_file(machine, config, options, std::move(*file));
  } else {
    take_this_machine(machine, config);
  }
  if (options.host_memory) machine.host_free = *options.host_memory;
  take_network(machine, config);
  return machine;
}

}  // namespace zi
