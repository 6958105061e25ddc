#include "model/decoder_spec.h"

#include <fmt/format.h>

#include <string>

namespace zi {
namespace {

/// Names a unit's tensors one after the other, and says where each one stands.
class UnitBuilder {
 public:
  UnitBuilder(UnitSpec& unit, std::string prefix) : unit_(unit), prefix_(std::move(prefix)) {}

  int matrix(const char* name, std::int64_t rows, std::int64_t cols) {
    unit_.matrices.push_back({prefix_ + name + ".weight", {rows, cols}});
    return static_cast<int>(unit_.matrices.size()) - 1;
  }
  int vector(const std::string& name, std::int64_t elements) {
    unit_.vectors.push_back({prefix_ + name, {elements}});
    return static_cast<int>(unit_.vectors.size()) - 1;
  }
  int weight(const char* name, std::int64_t elements) {
    return vector(std::string(name) + ".weight", elements);
  }
  int bias(bool there, const char* name, std::int64_t elements) {
    return there ? vector(std::string(name) + ".bias", elements) : -1;
  }

 private:
  UnitSpec& unit_;
  std::string prefix_;
};

BlockPlaces add_block(const ModelConfig& c, const Family& f, std::int64_t layer, UnitSpec& unit) {
  unit.name = fmt::format("block {}", layer);
  UnitBuilder add(unit, fmt::format("{}{}.", f.block_prefix, layer));
  const std::int64_t q_rows = c.heads * c.head_dim;
  const std::int64_t kv_rows = c.kv_heads * c.head_dim;
  BlockPlaces at;

  if (f.qkv != nullptr) {
    at.qkv = add.matrix(f.qkv, 3 * q_rows, c.hidden);
  } else {
    at.qkv_count = 3;
    at.qkv = add.matrix(f.q, q_rows, c.hidden);
    add.matrix(f.k, kv_rows, c.hidden);
    add.matrix(f.v, kv_rows, c.hidden);
  }
  at.output = add.matrix(f.output, c.hidden, q_rows);
  if (f.gate != nullptr) {
    at.up_count = 2;
    at.up = add.matrix(f.gate, c.ffn, c.hidden);
    add.matrix(f.up, c.ffn, c.hidden);
  } else {
    at.up = add.matrix(f.up, c.ffn, c.hidden);
  }
  at.down = add.matrix(f.down, c.hidden, c.ffn);
  unit.products = {at.qkv_count, 1, at.up_count, 1};

  at.norm1 = add.weight(f.norm1, c.hidden);
  at.norm1_beta = add.bias(f.centred_norms, f.norm1, c.hidden);
  if (f.qkv != nullptr) {
    at.q_bias = add.bias(c.attention_bias, f.qkv, 3 * q_rows);
  } else {
    at.q_bias = add.bias(c.attention_bias, f.q, q_rows);
    at.k_bias = add.bias(c.attention_bias, f.k, kv_rows);
    at.v_bias = add.bias(c.attention_bias, f.v, kv_rows);
  }
  if (f.q_norm != nullptr) {
    at.q_norm = add.weight(f.q_norm, c.head_dim);
    at.k_norm = add.weight(f.k_norm, c.head_dim);
  }
  at.output_bias = add.bias(c.output_bias, f.output, c.hidden);
  at.norm2 = add.weight(f.norm2, c.hidden);
  at.norm2_beta = add.bias(f.centred_norms, f.norm2, c.hidden);
  if (f.gate != nullptr) at.gate_bias = add.bias(c.mlp_bias, f.gate, c.ffn);
  at.up_bias = add.bias(c.mlp_bias, f.up, c.ffn);
  at.down_bias = add.bias(c.mlp_bias, f.down, c.hidden);
  return at;
}

}  // namespace

DecoderSpec decoder_spec(const ModelConfig& c, const Family& f, bool has_lm_head) {
  DecoderSpec out;
  ModelSpec& spec = out.spec;
  spec.prefix = f.prefix;
  spec.block_prefix = f.block_prefix;
  spec.ignored.assign(f.ignored.begin(), f.ignored.end());
  const std::string embedding = std::string(f.embedding) + ".weight";
  spec.embedding = {embedding, {c.vocabulary, c.hidden}};
  if (f.embedding_norm != nullptr) {
    out.embedding_norm_at = static_cast<int>(spec.vectors.size());
    spec.vectors.push_back({std::string(f.embedding_norm) + ".weight", {c.hidden}});
    spec.vectors.push_back({std::string(f.embedding_norm) + ".bias", {c.hidden}});
  }
  if (f.positions != nullptr) {
    out.positions_at = static_cast<int>(spec.vectors.size());
    spec.vectors.push_back(
        {std::string(f.positions) + ".weight", {c.max_positions + f.first_position, c.hidden}});
  }
  for (std::int64_t layer = 0; layer < c.layers; ++layer) {
    out.at = add_block(c, f, layer, spec.blocks.emplace_back());
  }
  spec.head = {.name = "head",
               .matrices = {{has_lm_head ? "lm_head.weight" : embedding, {c.vocabulary, c.hidden}}},
               .vectors = {{std::string(f.final_norm) + ".weight", {c.hidden}}}};
  if (f.centred_norms) {
    spec.head.vectors.push_back({std::string(f.final_norm) + ".bias", {c.hidden}});
  }
  return out;
}

}  // namespace zi
