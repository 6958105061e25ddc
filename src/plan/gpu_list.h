#pragma once

#include <optional>
#include <string>
#include <vector>

#include "plan/machine_limits.h"

namespace zi {

/// The names that `--gpus-like` takes.
std::vector<std::string> listed_gpus();

/// Limits of `world` such GPUs, `ranks_per_host` of them on each host; `source` says where the
/// numbers come from, `device_bytes` is what a rank finds free. Of the host, its memory and the
/// network nothing is known: `host_bytes` is 0, and gathers are those of one host. Throws
/// ConfigError with the names for one that is not listed.
MachineLimits limits_of_listed_gpu(const std::string& name, int world, int ranks_per_host);

/// The listed name of a GPU as its driver calls it (`NVIDIA H100 80GB HBM3`), if it is listed.
std::optional<std::string> listed_name(const std::string& device);

/// Whether a GPU of this name, a listed one or its driver's, is one of Hopper's: H100, H200, H800,
/// H20, GH200.
bool is_hopper(const std::string& name);

}  // namespace zi
