#pragma once

#include <string>
#include <vector>

#include "checkpoint/config_keys.h"
#include "zero_infer/quantization.h"

namespace zi {

/// Reads the `quantization_config` of GPTQ, AWQ, compressed-tensors and fp8 checkpoints. Throws
/// CheckpointError naming the key for a method, bits, groups or an option that is not supported.
Quantization read_quantization(const ConfigKeys& keys);

/// What a user should know about such a checkpoint, a line each; `file` is its config.json.
/// `config_alone`: there are no other files that say more.
std::vector<std::string> quantization_warnings(const Quantization& quantization,
                                               const std::string& file, bool config_alone = false);

}  // namespace zi
