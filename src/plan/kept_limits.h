#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "plan/machine_limits.h"

namespace zi {

/// Where the limits of this host are kept: $XDG_CACHE_HOME or ~/.cache,
/// `/zero-infer/limits-<hostname>-<backend>-<world>ranks.json`, of several hosts `-<ranks>-a-host`
/// before the dot; empty where neither is known.
std::filesystem::path kept_limits_path(const std::string& backend, int world, int ranks_per_host);

/// Writes them there. Throws IoError where that cannot be.
void keep_limits(const MachineLimits& limits);

/// What was kept for this host, if it was.
std::optional<MachineLimits> find_kept_limits(const std::string& backend, int world,
                                              int ranks_per_host);

}  // namespace zi
