#pragma once

#include <string_view>

namespace zi {

/// An architecture is ten times a compute capability: 80 is Ampere, 90 Hopper. Two of them decide
/// what a kernel may use: the one that its code was compiled for, which is what `__CUDA_ARCH__`
/// told the compiler, and the device's. They differ where a driver compiles PTX for a newer device:
/// code inside `#if __CUDA_ARCH__` is then missing on a device that could run it.

/// The kernels need bfloat16 on tensor cores and asynchronous copies.
inline constexpr int kLeastArchitecture = 80;

/// What kernels have in them that were compiled for one architecture and run on a device of
/// another.
struct KernelFeatures {
  /// `griddepcontrol`: a kernel that starts before the previous one has ended waits for it.
  bool early_launches = false;
  /// Hopper's asynchronous matrix units and clusters: sm_90a, which no other device runs.
  bool hopper_products = false;
  bool operator==(const KernelFeatures&) const = default;
};

/// `compiled`: 0 where there is no code for the device.
KernelFeatures kernel_features(int compiled, int device);

/// Whether a build for `architectures` (CMake's CUDA_ARCHITECTURES, separated by spaces, as in
/// `80-real 90`) holds code that a device of that architecture runs: machine code of the same major
/// version that is not newer, or PTX that is not newer. True for `native`, whose code is that of
/// the machine that built it.
bool has_code_for(std::string_view architectures, int device);

}  // namespace zi
