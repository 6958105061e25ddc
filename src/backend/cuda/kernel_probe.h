#pragma once

#include <string>

namespace zi {

/// What the driver says of the kernels in this program; architectures as in kernel_architecture.h.
/// All of it about the calling thread's current device, whose context it makes.

/// The device's.
int device_architecture();

/// The one that a kernel's code was compiled for, of the code that the device runs: loads the
/// kernel. 0 where there is none; `why`, if given, is then the driver's reason.
int compiled_architecture(const void* kernel, std::string* why = nullptr);

/// The same of the backend's kernels, all but those for Hopper alone.
int compiled_architecture_of_backend(std::string* why = nullptr);

/// What CMake was told to compile them for, as has_code_for takes it.
const char* architectures_of_build();

}  // namespace zi
