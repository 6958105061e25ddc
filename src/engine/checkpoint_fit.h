#pragma once

#include <string>
#include <vector>

#include "zero_infer/model_config.h"
#include "zero_infer/model_spec.h"
#include "zero_infer/weight_source.h"

namespace zi {

/// The head's own matrix, where the checkpoint stores one.
inline constexpr const char* kStoredHead = "lm_head.weight";

/// Compares what config.json asks for with what the checkpoint holds. Throws CheckpointError for a
/// head that is not tied and not there, and for blocks that are missing. Returns a line each for
/// what would otherwise go unnoticed: blocks beyond the model's, a stored head beside one that is
/// tied to the embedding, other tensors without use, special ids that no token has.
std::vector<std::string> check_fit(const ModelConfig& config, const ModelSpec& spec,
                                   const WeightSource& source);

}  // namespace zi
