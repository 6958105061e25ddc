#pragma once

#include <chrono>
#include <optional>

namespace zi {

/// How long the launcher waits between the signal that ends a rank and SIGKILL; nothing where no
/// such launcher (Open MPI's mpirun) started this process.
std::optional<std::chrono::milliseconds> launcher_patience();

}  // namespace zi
