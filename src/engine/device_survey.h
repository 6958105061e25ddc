#pragma once

#include <cstddef>
#include <string>

#include "zero_infer/run_config.h"

namespace zi {

/// The devices that ranks on this host would get, looked at without a job.
struct DeviceSurvey {
  std::string backend;          // `cuda` or `cpu`
  std::string device;           // its name
  int gpus = 0;                 // that are here; 0 on the CPU backend
  std::size_t device_free = 0;  // after the backend has taken its own: of the GPU with the least
  std::size_t host_free = 0;    // of this host, for all of its ranks
  bool device_is_host() const { return gpus == 0; }
};

/// As make_backend chooses, but one GPU is enough to plan for several like it. No context stays
/// behind that holds memory. Throws ConfigError where `--backend cuda` cannot be had.
DeviceSurvey survey_devices(BackendChoice choice, int ranks_per_host);

}  // namespace zi
