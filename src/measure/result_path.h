#pragma once

#include <string>

namespace zi {

/// Throws IoError, with the flag's name, where the file can neither be written nor made. Leaves no
/// trace: what follows may fail, and what stands there is then still wanted.
void check_can_be_written(const std::string& flag, const std::string& path);

}  // namespace zi
