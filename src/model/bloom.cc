#include "model/bloom.h"

#include <fmt/format.h>

#include "model/alibi.h"
#include "zero_infer/bytes.h"

namespace zi {
namespace {

constexpr const char* kBlockPrefix = "h.";

enum Matrix { kQkv, kDense, kUp, kDown };
enum Vector { kNorm1, kNorm1Bias, kQkvBias, kDenseBias, kNorm2, kNorm2Bias, kUpBias, kDownBias };

UnitSpec block_spec(const ModelConfig& c, std::int64_t layer) {
  const std::string h = fmt::format("{}{}.", kBlockPrefix, layer);
  return {.name = fmt::format("block {}", layer),
          .matrices = {{h + "self_attention.query_key_value.weight", {3 * c.hidden, c.hidden}},
                       {h + "self_attention.dense.weight", {c.hidden, c.hidden}},
                       {h + "mlp.dense_h_to_4h.weight", {c.ffn, c.hidden}},
                       {h + "mlp.dense_4h_to_h.weight", {c.hidden, c.ffn}}},
          .vectors = {{h + "input_layernorm.weight", {c.hidden}},
                      {h + "input_layernorm.bias", {c.hidden}},
                      {h + "self_attention.query_key_value.bias", {3 * c.hidden}},
                      {h + "self_attention.dense.bias", {c.hidden}},
                      {h + "post_attention_layernorm.weight", {c.hidden}},
                      {h + "post_attention_layernorm.bias", {c.hidden}},
                      {h + "mlp.dense_h_to_4h.bias", {c.ffn}},
                      {h + "mlp.dense_4h_to_h.bias", {c.hidden}}}};
}

}  // namespace

Bloom::Bloom(const ModelConfig& config, bool has_lm_head)
    : config_(config), host_slopes_(alibi_slopes(config.heads)) {
  const ModelConfig& c = config_;
  spec_.prefix = "transformer.";
  spec_.block_prefix = kBlockPrefix;
  spec_.ignored = {"self_attention.scale_mask_softmax.causal_mask"};
  spec_.embedding = {"word_embeddings.weight", {c.vocabulary, c.hidden}};
  spec_.vectors = {{"word_embeddings_layernorm.weight", {c.hidden}},
                   {"word_embeddings_layernorm.bias", {c.hidden}}};
  for (std::int64_t layer = 0; layer < c.layers; ++layer) {
    spec_.blocks.push_back(block_spec(c, layer));
  }
  spec_.head = {.name = "head",
                .matrices = {{has_lm_head ? "lm_head.weight" : spec_.embedding.name,
                              {c.vocabulary, c.hidden}}},
                .vectors = {{"ln_f.weight", {c.hidden}}, {"ln_f.bias", {c.hidden}}}};
}

Bloom::Workspace Bloom::layout(std::int64_t tokens, std::int64_t row_multiple) const {
  const auto multiple = static_cast<std::size_t>(row_multiple);
  const auto rows = static_cast<std::size_t>(tokens);
  const auto hidden = static_cast<std::size_t>(config_.hidden);
  const auto ffn = static_cast<std::size_t>(config_.ffn);
  const std::size_t widest = align_up(std::max(3 * hidden, ffn), multiple);
  Workspace w{};
  const auto take = [&w](std::size_t bytes) {
    const std::size_t offset = w.bytes;
    w.bytes = align_up(offset + bytes, kMatrixAlignment);
    return offset;
  };
  // Inputs of products have room for float32, the widest compute type.
  w.x = take(rows * hidden * sizeof(float));
  w.normed = take(rows * hidden * sizeof(float));
  w.product = take(rows * widest * sizeof(float));
  w.q = take(rows * hidden * sizeof(float));
  w.ffn = take(rows * ffn * sizeof(float));
  w.slopes = take(host_slopes_.size() * sizeof(float));
  return w;
}

std::size_t Bloom::workspace_bytes(std::int64_t tokens, std::int64_t row_multiple) const {
  return layout(tokens, row_multiple).bytes;
}

void Bloom::bind(Ops& ops, DType compute_dtype, std::byte* workspace, std::int64_t tokens,
                 std::int64_t row_multiple, std::span<const float* const> vectors, Device& device,
                 Stream& stream) {
  const Workspace w = layout(tokens, row_multiple);
  ops_ = &ops;
  compute_dtype_ = compute_dtype;
  vectors_ = vectors;
  x_ = reinterpret_cast<float*>(workspace + w.x);
  normed_ = workspace + w.normed;
  product_ = reinterpret_cast<float*>(workspace + w.product);
  q_ = reinterpret_cast<float*>(workspace + w.q);
  ffn_ = workspace + w.ffn;
  slopes_ = reinterpret_cast<float*>(workspace + w.slopes);
  device.copy(slopes_, host_slopes_.data(), host_slopes_.size() * sizeof(float), stream);
}

void Bloom::embed(const void* embedding, DType dtype, const std::int32_t* rows, std::int64_t tokens,
                  Stream& stream) {
  pending_.reset();
  tokens_ = tokens;
  if (rows != nullptr) {
    ops_->gather_rows(embedding, dtype, rows, tokens, config_.hidden, x_, stream);
  } else {
    ops_->convert(embedding, dtype, x_, DType::kFloat32, tokens * config_.hidden, stream);
  }
  ops_->layer_norm(x_, vectors_[0], vectors_[1], config_.norm_epsilon, tokens, config_.hidden, x_,
                   DType::kFloat32, stream);
}

void Bloom::norm(const float* weight, const float* bias, std::int64_t tokens, Stream& stream) {
  const std::int64_t hidden = config_.hidden;
  if (pending_ && !config_.residual_after_norm) {
    ops_->bias_residual_norm(product_, pending_->ld, pending_->bias, x_, weight, bias,
                             config_.norm_epsilon, tokens, hidden, normed_, compute_dtype_, stream);
    pending_.reset();
    return;
  }
  add_pending(tokens, stream);
  if (config_.residual_after_norm) {
    ops_->layer_norm(x_, weight, bias, config_.norm_epsilon, tokens, hidden, x_, DType::kFloat32,
                     stream);
    ops_->convert(x_, DType::kFloat32, normed_, compute_dtype_, tokens * hidden, stream);
  } else {
    ops_->layer_norm(x_, weight, bias, config_.norm_epsilon, tokens, hidden, normed_,
                     compute_dtype_, stream);
  }
}

void Bloom::add_pending(std::int64_t tokens, Stream& stream) {
  if (!pending_) return;
  ops_->bias_residual(product_, pending_->ld, pending_->bias, tokens, config_.hidden, x_, stream);
  pending_.reset();
}

void Bloom::run_block(int, const UnitView& weights, const RaggedBatch& batch, const KvLayer& kv,
                      Stream& stream) {
  const auto& m = weights.matrices;
  const auto& v = weights.vectors;
  const std::int64_t rows = batch.tokens;
  const DType type = compute_dtype_;

  norm(v[kNorm1], v[kNorm1Bias], rows, stream);
  ops_->matmul_qkv(normed_, type, m[kQkv], v[kQkvBias], batch, kv, product_, q_, stream);
  ops_->attention(q_, batch, kv, slopes_, normed_, type, stream);
  ops_->matmul(normed_, type, rows, m[kDense], product_, stream);
  pending_ = {v[kDenseBias], m[kDense].padded_rows()};

  norm(v[kNorm2], v[kNorm2Bias], rows, stream);
  ops_->matmul_gelu(normed_, type, rows, m[kUp], v[kUpBias], product_, ffn_, type, stream);
  ops_->matmul(ffn_, type, rows, m[kDown], product_, stream);
  pending_ = {v[kDownBias], m[kDown].padded_rows()};
}

void Bloom::head_input(const std::int32_t* rows, std::int64_t count,
                       std::span<const float* const> head_vectors, void* out, Stream& stream) {
  if (pending_ && count == tokens_) {  // ascending, each once: all rows, in their order
    ops_->bias_residual_norm(product_, pending_->ld, pending_->bias, x_, head_vectors[0],
                             head_vectors[1], config_.norm_epsilon, count, config_.hidden, out,
                             compute_dtype_, stream);
    pending_.reset();
    return;
  }
  add_pending(tokens_, stream);
  // The blocks are done with `product_`: it holds the chosen rows, of which there are at most
  // `tokens`.
  ops_->gather_rows(x_, DType::kFloat32, rows, count, config_.hidden, product_, stream);
  ops_->layer_norm(product_, head_vectors[0], head_vectors[1], config_.norm_epsilon, count,
                   config_.hidden, out, compute_dtype_, stream);
}

}  // namespace zi
