#pragma once

#include <string_view>

namespace zi {

/// What code for this processor may use, each with all before it. Not of x86-64: always kBaseline.
///
///     kAvx2         AVX2, FMA and F16C
///     kAvx512       AVX-512 F, BW, DQ and VL
///     kAvx512Bf16   and its products of bfloat16 pairs
///     kAmx          and tiles of them
enum class InstructionSet { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kAmx };

/// The best that the processor has and the system allows, at most what the environment variable
/// ZI_INSTRUCTION_SET names. Asks the system for the use of tiles once, for the whole process.
/// Throws ConfigError for a value that is no name.
InstructionSet instruction_set();

/// `best`, or the named one if that has less. Throws ConfigError for a text that is no name.
InstructionSet at_most(InstructionSet best, std::string_view name);

/// baseline, avx2, avx512, avx512_bf16, amx.
std::string_view name_of(InstructionSet set);

}  // namespace zi
