#pragma once

#include <cstdint>

#include "checkpoint/config_keys.h"
#include "zero_infer/model_config.h"

namespace zi {

inline constexpr std::int64_t kMostPositions = std::int64_t{1} << 30;

/// Reads how heads are rotated, from all keys that say so: those beside `rope_scaling` or
/// `rope_parameters`, and those in it. Needs the heads' size and `max_positions`, which becomes
/// larger where the scaling says so. Throws CheckpointError for what is not computed, makes no
/// sense, or is said twice with different values.
void read_rotary(const ConfigKeys& keys, ModelConfig& config);

}  // namespace zi
