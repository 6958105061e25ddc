#include "zero_infer/model_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include "base/json_file.h"
#include "checkpoint/config_keys.h"
#include "checkpoint/family_configs.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxConfigBytes = std::size_t{16} << 20;
constexpr std::int64_t kMostVocabulary = std::numeric_limits<std::int32_t>::max();
constexpr double kMostParameters = 1e15;

/// Sizes that are each within their limits can still multiply to a model that nobody has.
void check_size(const ModelConfig& c, const std::string& file) {
  const auto hidden = static_cast<double>(c.hidden);
  const double attention = 4 * static_cast<double>(c.heads * c.head_dim);
  const double block = hidden * (attention + 3 * static_cast<double>(c.ffn));
  const double parameters =
      static_cast<double>(c.layers) * block +
      hidden * (2 * static_cast<double>(c.vocabulary) + static_cast<double>(c.max_positions));
  if (parameters <= kMostParameters) return;
  throw CheckpointError(fmt::format(
      "{}: {} layers of a hidden size of {} and an MLP of {}, with {} tokens, are about {:.1e} "
      "parameters; models of up to {:.0e} are supported: the file is damaged",
      file, c.layers, c.hidden, c.ffn, c.vocabulary, parameters, kMostParameters));
}

}  // namespace

ModelConfig ModelConfig::load(const fs::path& directory) {
  std::error_code code;
  if (!fs::is_directory(directory, code)) {
    throw CheckpointError(fmt::format("{} is not a directory", directory.string()));
  }
  const fs::path config = directory / "config.json";
  if (!fs::exists(config, code) && !code) {
    throw CheckpointError(fmt::format(
        "{} has no config.json; give the directory of a model as Hugging Face publishes it",
        directory.string()));
  }
  const fs::path generation = directory / "generation_config.json";
  std::optional<std::string> text;
  if (fs::exists(generation, code)) text = read_text_file(generation, kMaxConfigBytes);
  return parse(read_text_file(config, kMaxConfigBytes), text, directory);
}

ModelConfig ModelConfig::parse(std::string_view config_json,
                               const std::optional<std::string>& generation_config_json,
                               const fs::path& directory) {
  const ConfigKeys keys(config_json, (directory / "config.json").string());
  ModelConfig config;
  config.family = keys.text("model_type");
  using Names = ConfigKeys::Names;
  const bool bloom = config.family == "bloom";
  const auto names = [&](Names of_bloom, Names others) { return bloom ? of_bloom : others; };
  config.hidden = keys.size(names({"n_embed", "hidden_size"}, {"hidden_size"}), kMostHidden);
  config.layers =
      keys.size(names({"n_layer", "num_hidden_layers"}, {"num_hidden_layers"}), kMostLayers);
  config.heads =
      keys.size(names({"n_head", "num_attention_heads"}, {"num_attention_heads"}), kMostHeads);
  config.vocabulary = keys.size({"vocab_size"}, kMostVocabulary);
  config.eos_ids = keys.ids("eos_token_id");
  config.bos_id = keys.id("bos_token_id");
  config.pad_id = keys.id("pad_token_id");
  read_family(keys, config);
  check_size(config, keys.file());
  if (generation_config_json) {
    // The ids at which the model's authors want generation to stop take precedence over those of
    // training.
    const ConfigKeys generation(*generation_config_json,
                                (directory / "generation_config.json").string());
    std::vector<std::int32_t> ids = generation.ids("eos_token_id");
    if (!ids.empty()) config.eos_ids = std::move(ids);
  }
  return config;
}

std::vector<ConfigValue> ModelConfig::values() const {
  // This does not compile when a member is added: list it below.
  const auto& [family_, hidden_, layers_, heads_, kv_heads_, head_dim_, ffn_, vocabulary_,
               max_positions_, rotary_, activation_, norm_epsilon_, attention_bias_, output_bias_,
               mlp_bias_, residual_after_norm_, tied_head_, block_format_, head_format_,
               quantization_, eos_ids_, bos_id_, pad_id_] = *this;
  return {{"model_type", family_},
          {"hidden_size", fmt::to_string(hidden_)},
          {"n_layer", fmt::to_string(layers_)},
          {"n_head", fmt::to_string(heads_)},
          {"num_key_value_heads", fmt::to_string(kv_heads_)},
          {"head_dim", fmt::to_string(head_dim_)},
          {"n_inner", fmt::to_string(ffn_)},
          {"vocab_size", fmt::to_string(vocabulary_)},
          {"max_position_embeddings", fmt::to_string(max_positions_)},
          {"rope_parameters", rotary_.text()},
          {"hidden_act", std::string(name_of(activation_))},
          {"layer_norm_epsilon", fmt::to_string(norm_epsilon_)},
          {"attention_bias", fmt::to_string(attention_bias_)},
          {"attention_bias of the output", fmt::to_string(output_bias_)},
          {"mlp_bias", fmt::to_string(mlp_bias_)},
          {"apply_residual_connection_post_layernorm", fmt::to_string(residual_after_norm_)},
          {"tie_word_embeddings", fmt::to_string(tied_head_)},
          {"quantization_config.weight_format", block_format_},
          {"quantization_config.head_format", head_format_},
          {"quantization_config", quantization_.text()},
          {"eos_token_id", fmt::format("[{}]", fmt::join(eos_ids_, ", "))},
          {"bos_token_id", fmt::to_string(bos_id_)},
          {"pad_token_id", fmt::to_string(pad_id_)}};
}

}  // namespace zi
