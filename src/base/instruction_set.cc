#include "base/instruction_set.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "zero_infer/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace zi {
namespace {

constexpr std::array<std::string_view, 5> kNames = {"baseline", "avx2", "avx512", "avx512_bf16",
                                                    "amx"};

#if defined(__x86_64__)
struct CpuId {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  CpuId(unsigned leaf, unsigned part) {
    if (__get_cpuid_count(leaf, part, &eax, &ebx, &ecx, &edx) == 0) eax = ebx = ecx = edx = 0;
  }
};

/// Linux gives a process the registers of tiles when it asks: they are large to save.
bool system_allows_tiles() {
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

InstructionSet best_set() {
  // Those that __builtin_cpu_supports knows it checks with the system's support.
  const bool f16c = (CpuId(1, 0).ecx & bit_F16C) != 0;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !f16c) {
    return InstructionSet::kBaseline;
  }
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return InstructionSet::kAvx2;
  }
  if ((CpuId(7, 1).eax & 1u << 5) == 0) return InstructionSet::kAvx512;  // AVX512_BF16
  const unsigned features = CpuId(7, 0).edx;
  const bool tiles = (features & 1u << 24) != 0 && (features & 1u << 22) != 0 &&  // AMX_TILE, _BF16
                     __builtin_cpu_supports("avx512vbmi");
  return tiles && system_allows_tiles() ? InstructionSet::kAmx : InstructionSet::kAvx512Bf16;
}
#else
InstructionSet best_set() { return InstructionSet::kBaseline; }
#endif

InstructionSet chosen_set() {
  const char* const wanted = std::getenv("ZI_INSTRUCTION_SET");
  return wanted == nullptr ? best_set() : at_most(best_set(), wanted);
}

}  // namespace

InstructionSet at_most(InstructionSet best, std::string_view name) {
  const auto* const found = std::find(kNames.begin(), kNames.end(), name);
  if (found == kNames.end()) {
    throw ConfigError(fmt::format("ZI_INSTRUCTION_SET is '{}'; it can be one of {}", name,
                                  fmt::join(kNames, ", ")));
  }
  return std::min(best, static_cast<InstructionSet>(found - kNames.begin()));
}

InstructionSet instruction_set() {
  static const InstructionSet set = chosen_set();
  return set;
}

std::string_view name_of(InstructionSet set) { return kNames[static_cast<std::size_t>(set)]; }

}  // namespace zi
