#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "zero_infer/activation.h"
#include "zero_infer/quantization.h"
#include "zero_infer/rotary.h"

namespace zi {

/// A member of a ModelConfig as config.json names it, with its value as text.
struct ConfigValue {
  std::string key;
  std::string value;
};

/// A model's shape and constants, whatever its family: config.json with its aliases and its
/// family's defaults resolved.
struct ModelConfig {
  std::string family;  // config.json's model_type: `bloom`, `llama`, ..
  std::int64_t hidden = 0;
  std::int64_t layers = 0;
  std::int64_t heads = 0;     // of queries
  std::int64_t kv_heads = 0;  // of keys and values; divides `heads`
  std::int64_t head_dim = 0;
  std::int64_t ffn = 0;  // width of the MLP
  std::int64_t vocabulary = 0;
  std::int64_t max_positions = 0;  // tokens of a sequence at most; 0: no limit
  Rotary rotary;
  Activation activation = Activation::kGeluTanh;
  float norm_epsilon = 1e-5f;
  bool attention_bias = true;        // of q, k and v
  bool output_bias = true;           // of the attention's output
  bool mlp_bias = true;              // of the MLP's products
  bool residual_after_norm = false;  // apply_residual_connection_post_layernorm
  bool tied_head = true;
  std::string block_format;   // names of the formats in which a checkpoint of `zero-infer pack`
  std::string head_format;    // holds blocks, and head and embedding; else empty
  Quantization quantization;  // of a checkpoint that another program has quantized
  std::vector<std::int32_t> eos_ids;  // any of them ends a sequence; may be empty
  std::int32_t bos_id = -1;
  std::int32_t pad_id = -1;

  /// Reads `directory`/config.json and, for the end-of-text ids, generation_config.json where there
  /// is one. Throws CheckpointError naming file, key and value: missing or not JSON, a key that is
  /// missing, of the wrong type, not positive or not finite, a family that is not supported, a key
  /// that asks for what this version does not compute, heads that do not divide hidden or each
  /// other, and sizes that no model has: all bytes of the model can be counted in 63 bits.
  static ModelConfig load(const std::filesystem::path& directory);
  /// The same from the files' texts; `directory` stands in messages.
  static ModelConfig parse(std::string_view config_json,
                           const std::optional<std::string>& generation_config_json,
                           const std::filesystem::path& directory);

  /// All members, always the same keys in the same order: two configs are equal where all values
  /// are.
  std::vector<ConfigValue> values() const;
  bool operator==(const ModelConfig&) const = default;
};

}  // namespace zi
