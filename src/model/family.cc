#include "model/family.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/printable_text.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

/// Llama (Touvron et al. 2023): RMSNorm, rotary positions, grouped queries, SwiGLU. Mistral and
/// Qwen2 name their tensors alike; what differs is in the config.
Family llama(std::string_view name) {
  return {.name = name,
          .prefix = "model.",
          .block_prefix = "layers.",
          .embedding = "embed_tokens",
          .final_norm = "norm",
          .norm1 = "input_layernorm",
          .q = "self_attn.q_proj",
          .k = "self_attn.k_proj",
          .v = "self_attn.v_proj",
          .output = "self_attn.o_proj",
          .norm2 = "post_attention_layernorm",
          .gate = "mlp.gate_proj",
          .up = "mlp.up_proj",
          .down = "mlp.down_proj",
          .ignored = {"rotary_emb.inv_freq"}};
}

/// Qwen3 (Yang et al. 2025): Llama with a norm of each query and key.
Family qwen3() {
  Family family = llama("qwen3");
  family.q_norm = "self_attn.q_norm";
  family.k_norm = "self_attn.k_norm";
  return family;
}

/// BLOOM (Le Scao et al. 2022): LayerNorm after the embedding too, fused QKV, ALiBi, GELU in its
/// tanh form, the head tied to the embedding.
Family bloom() {
  return {.name = "bloom",
          .prefix = "transformer.",
          .block_prefix = "h.",
          .embedding = "word_embeddings",
          .embedding_norm = "word_embeddings_layernorm",
          .final_norm = "ln_f",
          .centred_norms = true,
          .alibi = true,
          .norm1 = "input_layernorm",
          .qkv = "self_attention.query_key_value",
          .output = "self_attention.dense",
          .norm2 = "post_attention_layernorm",
          .up = "mlp.dense_h_to_4h",
          .down = "mlp.dense_4h_to_h",
          .ignored = {"self_attention.scale_mask_softmax.causal_mask"}};
}

/// OPT (Zhang et al. 2022): learned positions, ReLU.
Family opt() {
  return {.name = "opt",
          .prefix = "model.",
          .block_prefix = "decoder.layers.",
          .embedding = "decoder.embed_tokens",
          .positions = "decoder.embed_positions",
          .first_position = 2,
          .final_norm = "decoder.final_layer_norm",
          .centred_norms = true,
          .norm1 = "self_attn_layer_norm",
          .q = "self_attn.q_proj",
          .k = "self_attn.k_proj",
          .v = "self_attn.v_proj",
          .output = "self_attn.out_proj",
          .norm2 = "final_layer_norm",
          .up = "fc1",
          .down = "fc2"};
}

}  // namespace

const Family& family_of(const ModelConfig& config) {
  static const std::vector<Family> families = {bloom(),        llama("llama"), llama("mistral"),
                                               llama("qwen2"), qwen3(),        opt()};
  const auto found = std::ranges::find(families, config.family, &Family::name);
  if (found != families.end()) return *found;
  throw CheckpointError(
      fmt::format("models of type {} are not supported", in_quotes(config.family)));
}

}  // namespace zi
