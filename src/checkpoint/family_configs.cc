#include "checkpoint/family_configs.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/printable_text.h"
#include "checkpoint/quantization.h"
#include "checkpoint/rotary_config.h"
#include "zero_infer/error.h"
#include "zero_infer/weight_format.h"

namespace zi {
namespace {

using nlohmann::json;

Activation activation_of(const ConfigKeys& keys, const char* key, Activation absent) {
  constexpr std::array<std::pair<std::string_view, Activation>, 9> kNames = {
      {{"gelu", Activation::kGelu},
       {"gelu_new", Activation::kGeluTanh},
       {"gelu_fast", Activation::kGeluTanh},
       {"gelu_pytorch_tanh", Activation::kGeluTanh},
       {"relu", Activation::kRelu},
       {"silu", Activation::kSilu},
       {"swish", Activation::kSilu},
       {"gelu_python", Activation::kGelu},
       {"gelu_tanh", Activation::kGeluTanh}}};
  const auto text = keys.optional_text(key);
  if (!text) return absent;
  for (const auto& [name, activation] : kNames) {
    if (*text == name) return activation;
  }
  keys.fail(key, "one of gelu, gelu_new, gelu_pytorch_tanh, relu and silu");
}

/// Attention to the last `window` keys alone is the same as attention to all of them as long as
/// there are no more.
void bound_by_window(const ConfigKeys& keys, ModelConfig& config,
                     std::optional<std::int64_t> absent) {
  const auto window = keys.has("sliding_window")
                          ? keys.optional_size({"sliding_window"}, kMostPositions)
                      : keys.is_null("sliding_window") ? std::nullopt
                                                       : absent;
  if (window) config.max_positions = std::min(config.max_positions, *window);
}

/// Qwen's: layers from a number on, or those that a list names.
void read_qwen_window(const ConfigKeys& keys, ModelConfig& config) {
  bool slides = false;
  const std::vector<std::string> types = keys.texts("layer_types");
  for (const std::string& type : types) {
    if (type != "full_attention" && type != "sliding_attention") {
      keys.fail("layer_types", "full_attention or sliding_attention for each layer");
    }
    slides = slides || type == "sliding_attention";
  }
  if (types.empty()) {
    const auto first = keys.optional_count("max_window_layers", kMostLayers).value_or(28);
    slides = keys.flag("use_sliding_window", false) && first < config.layers;
  }
  if (slides) bound_by_window(keys, config, 4096);
}

void read_bloom(const ConfigKeys& keys, ModelConfig& config) {
  config.ffn = keys.optional_size({"n_inner"}, kMostFfn).value_or(4 * config.hidden);
  config.norm_epsilon = static_cast<float>(keys.positive("layer_norm_epsilon", 1e-5));
  config.residual_after_norm = keys.flag("apply_residual_connection_post_layernorm", false);
  config.tied_head = keys.flag("tie_word_embeddings", true);
}

void read_opt(const ConfigKeys& keys, ModelConfig& config) {
  config.ffn = keys.size({"ffn_dim"}, kMostFfn);
  config.max_positions =
      keys.optional_size({"max_position_embeddings"}, kMostPositions).value_or(2048);
  config.activation = activation_of(keys, "activation_function", Activation::kRelu);
  const bool biases = keys.flag("enable_bias", true);
  config.attention_bias = config.output_bias = config.mlp_bias = biases;
  config.tied_head = keys.flag("tie_word_embeddings", true);
  if (!keys.flag("do_layer_norm_before", true)) {
    keys.fail("do_layer_norm_before",
              "true: OPT-350m, which has its norms behind the blocks' parts, is not supported");
  }
  if (keys.optional_size({"word_embed_proj_dim"}, kMostHidden).value_or(config.hidden) !=
      config.hidden) {
    keys.fail("word_embed_proj_dim", fmt::format("{}, the hidden size: projections of the "
                                                 "embedding (OPT-350m) are not supported",
                                                 config.hidden));
  }
  if (!keys.flag("layer_norm_elementwise_affine", true)) {
    keys.fail("layer_norm_elementwise_affine", "true: norms without weights are not supported");
  }
  keys.refuse("_remove_final_layer_norm", "a model without its last norm is");
}

/// Llama, Mistral, Qwen2 and Qwen3: RMSNorm, rotary positions, a gated MLP.
void read_gated(const ConfigKeys& keys, ModelConfig& config) {
  const std::string& family = config.family;
  config.ffn = keys.size({"intermediate_size"}, kMostFfn);
  // The defaults of the others, 8 and 32 heads, are those of one model each: a config without the
  // key would be read wrongly. Null is as many as there are of queries.
  const bool own = family == "llama" || keys.is_null("num_key_value_heads");
  config.kv_heads =
      own ? keys.optional_size({"num_key_value_heads"}, kMostHeads).value_or(config.heads)
          : keys.size({"num_key_value_heads"}, kMostHeads);
  const std::int64_t positions = family == "llama" ? 2048 : family == "mistral" ? 131072 : 32768;
  config.max_positions =
      keys.optional_size({"max_position_embeddings"}, kMostPositions).value_or(positions);
  config.activation = activation_of(keys, "hidden_act", Activation::kSilu);
  config.norm_epsilon = static_cast<float>(keys.positive("rms_norm_eps", 1e-6));
  config.tied_head = keys.flag("tie_word_embeddings", false);
  const bool has_flags = family == "llama" || family == "qwen3";
  config.output_bias = has_flags && keys.flag("attention_bias", false);
  config.attention_bias = config.output_bias || family == "qwen2";
  config.mlp_bias = family == "llama" && keys.flag("mlp_bias", false);
  read_rotary(keys, config);
  if (family == "mistral") bound_by_window(keys, config, 4096);
  if (family == "qwen2" || family == "qwen3") read_qwen_window(keys, config);
}

/// Keys of relatives of the supported families, each of which changes what is computed.
void refuse_unknown(const ConfigKeys& keys) {
  const struct {
    const char* key;
    const char* what;
    json neutral;
  } kRefused[] = {
      {"num_local_experts", "mixtures of experts are", nullptr},
      {"num_experts", "mixtures of experts are", nullptr},
      {"n_routed_experts", "mixtures of experts are", nullptr},
      {"attn_logit_softcapping", "capped scores are", nullptr},
      {"final_logit_softcapping", "capped logits are", nullptr},
      {"embedding_multiplier", "a scaled embedding is", 1.0},
      {"residual_multiplier", "a scaled residual is", 1.0},
      {"attention_multiplier", "another scale of scores is", nullptr},
      {"query_pre_attn_scalar", "another scale of scores is", nullptr},
      {"logits_scaling", "scaled logits are", 1.0},
      {"logit_scale", "scaled logits are", 1.0},
      {"scale_emb", "a scaled embedding is", 1},
      {"scale_depth", "a scaled residual is", nullptr},
      {"dim_model_base", "scaled logits are", nullptr},
      {"clip_qkv", "clipped queries, keys and values are", nullptr},
      {"use_qk_norm", "this norm of queries and keys is", nullptr},
      {"qk_layernorm", "this norm of queries and keys is", nullptr},
      {"no_rope_layers", "layers without positions are", nullptr},
      {"no_rope_layer_interval", "layers without positions are", nullptr},
      {"attention_chunk_size", "attention in chunks is", nullptr},
      {"attn_temperature_tuning", "another scale of scores is", nullptr},
      {"llama_4_scaling", "another scale of scores is", nullptr},
      {"parallel_attn", "attention beside the MLP is", nullptr},
      {"use_parallel_residual", "attention beside the MLP is", nullptr},
      {"is_encoder_decoder", "a model with an encoder is", nullptr},
      {"vision_config", "images are", nullptr},
  };
  for (const auto& refused : kRefused) keys.refuse(refused.key, refused.what, refused.neutral);
}

/// What `zero-infer pack` writes, and what other programs do.
void read_packing(const ConfigKeys& keys, ModelConfig& config) {
  // Early checkpoints of compressed-tensors have the second key.
  const auto packing_keys =
      keys.object(keys.has("quantization_config") ? "quantization_config" : "compression_config");
  if (!packing_keys) return;
  const ConfigKeys& packing = *packing_keys;
  if (packing.optional_text("quant_method") != kPackMethod) {
    config.quantization = read_quantization(packing);
    return;
  }
  packing.allow_only({"quant_method", "version", "weight_format", "head_format"});
  if (packing.size({"version"}, kMostHidden) != kPackVersion) {
    packing.fail("version", fmt::format("{}, which this version reads", kPackVersion));
  }
  const auto format = [&](const char* key) {
    const std::string name = packing.text(key);
    const bool elements = name == "bfloat16" || name == "float16" || name == "float32";
    if (!elements && !packed_format_named(name)) {
      packing.fail(key, "the name of a format, such as int4g16f8 or bfloat16");
    }
    return name;
  };
  config.block_format = format("weight_format");
  config.head_format = format("head_format");
}

constexpr std::array<std::pair<std::string_view, void (*)(const ConfigKeys&, ModelConfig&)>, 6>
    kFamilies = {{{"bloom", read_bloom},
                  {"llama", read_gated},
                  {"mistral", read_gated},
                  {"opt", read_opt},
                  {"qwen2", read_gated},
                  {"qwen3", read_gated}}};

}  // namespace

void read_family(const ConfigKeys& keys, ModelConfig& config) {
  const auto family = std::ranges::find(
      kFamilies, config.family,
      &std::pair<std::string_view, void (*)(const ConfigKeys&, ModelConfig&)>::first);
  if (family == kFamilies.end()) {
    std::string names;
    for (const auto& [name, read] : kFamilies) {
      names += fmt::format("{}`{}`", names.empty() ? "" : ", ", name);
    }
    throw CheckpointError(
        fmt::format("{}: models of type {} are not supported; this version runs {}", keys.file(),
                    in_quotes(config.family), names));
  }
  refuse_unknown(keys);
  read_packing(keys, config);
  const bool own_head_dim = config.family != "bloom" && config.family != "opt";
  const auto head_dim =
      own_head_dim ? keys.optional_size({"head_dim"}, kMostHidden) : std::optional<std::int64_t>();
  if (head_dim) {
    config.head_dim = *head_dim;
  } else if (config.family == "qwen3") {
    config.head_dim = 128;
  } else if (config.hidden % config.heads != 0) {
    throw CheckpointError(fmt::format("{}: {} heads do not divide a hidden size of {}", keys.file(),
                                      config.heads, config.hidden));
  } else {
    config.head_dim = config.hidden / config.heads;
  }
  config.kv_heads = config.heads;
  family->second(keys, config);
  if (config.heads % config.kv_heads != 0) {
    throw CheckpointError(
        fmt::format("{}: {} heads of keys and values (`num_key_value_heads`) do not divide {} of "
                    "queries",
                    keys.file(), config.kv_heads, config.heads));
  }
}

}  // namespace zi
