#pragma once

#include <filesystem>
#include <vector>

#include "config/option_table.h"

namespace zi {

/// What a YAML file says, for apply_level. Throws ConfigError (`file:line: message`) for what is no
/// map of known keys, each there once.
std::vector<Given> read_yaml_level(const std::filesystem::path& path);

}  // namespace zi
