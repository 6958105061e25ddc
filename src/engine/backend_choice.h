#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "zero_infer/communicator.h"
#include "zero_infer/device.h"
#include "zero_infer/ops.h"
#include "zero_infer/run_config.h"
#include "zero_infer/world.h"

namespace zi {

/// A backend's parts for one rank.
struct Backend {
  std::string name;
  std::unique_ptr<Device> device;
  std::unique_ptr<Ops> ops;
  /// The ranks that hold a copy of the weights together, this one among them: the job's, which the
  /// World numbers, or those of its host. What a pass exchanges stays among them.
  std::shared_ptr<RankGroup> partition;
  std::unique_ptr<Communicator> communicator;  // of the partition's devices; null for one of one
};

/// Collective. The backend that the config asks for, or the best there is, and the partition that
/// it asks for. Throws on all ranks or none; where a partition is not the whole job, what fails in
/// one of them alone is to end the job.
Backend make_backend(World& world, const RunConfig& config);

/// Collective over `ranks`: a communicator between their devices, of the backend's kind; null for
/// one rank. Throws on all of them or none. World, ranks and backend outlive it.
std::unique_ptr<Communicator> make_communicator(World& world, RankGroup& ranks,
                                                const Backend& backend, const RunConfig& config);

/// The devices that ranks on this host would get, looked at without a job.
struct DeviceSurvey {
  std::string backend;          // `cuda` or `cpu`
  std::string device;           // its name
  int gpus = 0;                 // that are here; 0 on the CPU backend
  std::size_t device_free = 0;  // after the backend has taken its own: of the GPU with the least
  std::size_t host_free = 0;    // of this host, for all of its ranks
  bool device_is_host() const { return gpus == 0; }
};

/// As make_backend chooses, but one GPU is enough to plan for several like it. Leaves no context
/// that holds memory. Throws ConfigError where `--backend cuda` is not possible.
DeviceSurvey survey_devices(BackendChoice choice, int ranks_per_host);

}  // namespace zi
