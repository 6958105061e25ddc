#pragma once

#include <cstdint>
#include <string>

#include "checkpoint/config_keys.h"
#include "zero_infer/model_config.h"

namespace zi {

/// Upper limits of sizes far above any model: whatever a config.json says, the bytes of the whole
/// model stay far below 2^63 (each is looked at once and can be summed up in peace), and lists by
/// layer, by head or of ids stay short.
inline constexpr std::int64_t kMostHidden = std::int64_t{1} << 20;
inline constexpr std::int64_t kMostLayers = 4096;
inline constexpr std::int64_t kMostHeads = 4096;
inline constexpr std::int64_t kMostFfn = std::int64_t{1} << 24;

/// The `quantization_config` of a checkpoint that `zero-infer pack` wrote, which other programs
/// refuse by its method: {"quant_method": "zero-infer", "version": 1, "weight_format": "int4g16f8",
/// "head_format": "bfloat16"}.
inline constexpr const char* kPackMethod = "zero-infer";
inline constexpr std::int64_t kPackVersion = 1;

/// Reads what differs between families, with the defaults of Hugging Face transformers, into a
/// config that has `family`, `hidden`, `layers`, `heads` and `vocabulary`. Throws CheckpointError
/// for a family that is not supported, and lists those that are; and for a key that asks for what
/// this version does not compute.
void read_family(const ConfigKeys& keys, ModelConfig& config);

}  // namespace zi
