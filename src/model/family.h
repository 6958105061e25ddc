#pragma once

#include <string_view>
#include <vector>

#include "zero_infer/model_config.h"

namespace zi {

/// How a family names its tensors; null where it has none. Matrices go on with `.weight`, and where
/// the config says so with `.bias`.
struct Family {
  std::string_view name;     // config.json's model_type
  const char* prefix;        // that tensors may carry, but for a head of their own
  const char* block_prefix;  // followed by the block's number
  const char* embedding;
  const char* positions = nullptr;  // learned, (max_positions + first_position, hidden)
  std::int64_t first_position = 0;  // the row of position 0
  const char* embedding_norm = nullptr;
  const char* final_norm;
  bool centred_norms = false;  // LayerNorm with its biases, else RMSNorm
  bool alibi = false;
  // of a block:
  const char* norm1;
  const char* qkv = nullptr;  // one matrix, query, key and value of a head side by side, or
  const char* q = nullptr;    // three
  const char* k = nullptr;
  const char* v = nullptr;
  const char* q_norm = nullptr;
  const char* k_norm = nullptr;
  const char* output;
  const char* norm2;
  const char* gate = nullptr;
  const char* up;
  const char* down;
  std::vector<std::string_view> ignored = {};  // ends of names that may be there without use
};

/// Throws CheckpointError for a family that is not supported.
const Family& family_of(const ModelConfig& config);

}  // namespace zi
