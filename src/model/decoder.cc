#include "model/decoder.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/alibi.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

const float* vector_at(std::span<const float* const> vectors, int at) {
  return at < 0 ? nullptr : vectors[static_cast<std::size_t>(at)];
}

/// `count` matrices from the one at `first` on.
Matrices side_by_side(std::span<const RowBlockMatrix> matrices, int first, int count) {
  return Matrices(
      matrices.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)));
}

}  // namespace

Decoder::Decoder(const ModelConfig& config, const Family& family, bool has_lm_head)
    : config_(config),
      centred_norms_(family.centred_norms),
      first_position_(family.first_position),
      tensors_(decoder_spec(config, family, has_lm_head)),
      host_frequencies_(config.rotary.frequencies()) {
  if (config.head_dim > kMostHeadDim) {
    throw CheckpointError(
        fmt::format("attention heads of {} elements are not supported: {} at most", config.head_dim,
                    kMostHeadDim));
  }
  if (family.alibi) host_slopes_ = alibi_slopes(config.heads);
}

std::vector<BlockProduct> Decoder::products() const {
  const BlockPlaces& at = tensors_.at;
  return {{at.qkv, at.qkv_count}, {at.output}, {at.up, at.up_count, true}, {at.down}};
}

Decoder::Workspace Decoder::layout(std::int64_t tokens, std::int64_t row_multiple) const {
  const auto multiple = static_cast<std::size_t>(row_multiple);
  const auto rows = static_cast<std::size_t>(tokens);
  const auto hidden = static_cast<std::size_t>(config_.hidden);
  const auto ffn = static_cast<std::size_t>(config_.ffn);
  const auto q = static_cast<std::size_t>(config_.heads * config_.head_dim);
  const auto kv = static_cast<std::size_t>(config_.kv_heads * config_.head_dim);
  const auto rotary = static_cast<std::size_t>(config_.rotary.elements);
  const auto padded = [&](std::size_t columns) { return align_up(columns, multiple); };
  const std::size_t qkv = tensors_.at.qkv_count == 1 ? padded(3 * q) : padded(q) + 2 * padded(kv);
  const std::size_t up = static_cast<std::size_t>(tensors_.at.up_count) * padded(ffn);
  const std::size_t widest = std::max({qkv, up, padded(hidden)});
  Workspace w{};
  const auto take = [&w](std::size_t bytes) {
    const std::size_t offset = w.bytes;
    w.bytes = align_up(offset + bytes, kMatrixAlignment);
    return offset;
  };
  // Inputs of products have room for float32, the widest compute type.
  w.x = take(rows * hidden * sizeof(float));
  w.normed = take(rows * std::max(hidden, q) * sizeof(float));
  w.product = take(rows * widest * sizeof(float));
  w.q = take(rows * q * sizeof(float));
  w.ffn = take(rows * ffn * sizeof(float));
  w.rotations = take(rows * rotary * sizeof(float));
  w.slopes = take(host_slopes_.size() * sizeof(float));
  w.frequencies = take(host_frequencies_.size() * sizeof(float));
  return w;
}

std::size_t Decoder::workspace_bytes(std::int64_t tokens, std::int64_t row_multiple) const {
  return layout(tokens, row_multiple).bytes;
}

void Decoder::bind(Ops& ops, DType compute_dtype, std::byte* workspace, std::int64_t tokens,
                   std::int64_t row_multiple, std::span<const float* const> vectors, Device& device,
                   Stream& stream) {
  const Workspace w = layout(tokens, row_multiple);
  ops_ = &ops;
  compute_dtype_ = compute_dtype;
  vectors_ = vectors;
  const auto floats = [&](std::size_t offset) {
    return reinterpret_cast<float*>(workspace + offset);
  };
  x_ = floats(w.x);
  normed_ = workspace + w.normed;
  product_ = floats(w.product);
  q_ = floats(w.q);
  ffn_ = workspace + w.ffn;
  rotations_ = host_frequencies_.empty() ? nullptr : floats(w.rotations);
  const auto upload = [&](const std::vector<float>& values, std::size_t offset) -> float* {
    if (values.empty()) return nullptr;
    device.copy(floats(offset), values.data(), values.size() * sizeof(float), stream);
    return floats(offset);
  };
  slopes_ = upload(host_slopes_, w.slopes);
  frequencies_ = upload(host_frequencies_, w.frequencies);
}

Norm Decoder::norm_of(const float* gamma, const float* beta) const {
  return {gamma, beta, config_.norm_epsilon, centred_norms_};
}

void Decoder::embed(const RaggedBatch& batch, Stream& stream) {
  pending_.reset();
  tokens_ = batch.tokens;
  const std::int64_t hidden = config_.hidden;
  if (tensors_.embedding_norm_at >= 0) {
    const Norm norm = norm_of(vector_at(vectors_, tensors_.embedding_norm_at),
                              vector_at(vectors_, tensors_.embedding_norm_at + 1));
    ops_->normalize(x_, norm, tokens_, hidden, x_, DType::kFloat32, stream);
  }
  if (tensors_.positions_at >= 0) {
    ops_->add_positions(vector_at(vectors_, tensors_.positions_at), first_position_, batch, hidden,
                        x_, stream);
  }
  if (rotations_ != nullptr) {
    ops_->rotations(frequencies_, static_cast<int>(host_frequencies_.size()),
                    static_cast<float>(config_.rotary.attention_factor), batch, rotations_, stream);
  }
}

void Decoder::normalize(const Norm& norm, std::int64_t tokens, Stream& stream) {
  const std::int64_t hidden = config_.hidden;
  if (pending_ && !config_.residual_after_norm) {
    ops_->bias_residual_norm(product_, pending_->ld, pending_->bias, x_, norm, tokens, hidden,
                             normed_, compute_dtype_, stream);
    pending_.reset();
    return;
  }
  add_pending(tokens, stream);
  if (config_.residual_after_norm) {
    ops_->normalize(x_, norm, tokens, hidden, x_, DType::kFloat32, stream);
    ops_->convert(x_, DType::kFloat32, normed_, compute_dtype_, tokens * hidden, stream);
  } else {
    ops_->normalize(x_, norm, tokens, hidden, normed_, compute_dtype_, stream);
  }
}

void Decoder::add_pending(std::int64_t tokens, Stream& stream) {
  if (!pending_) return;
  ops_->bias_residual(product_, pending_->ld, pending_->bias, tokens, config_.hidden, x_, stream);
  pending_.reset();
}

QkvSplit Decoder::split_of(const Matrices& w, std::span<const float* const> v) const {
  const std::int64_t d = config_.head_dim;
  QkvSplit split{.heads = static_cast<int>(config_.heads),
                 .q_norm = vector_at(v, tensors_.at.q_norm),
                 .k_norm = vector_at(v, tensors_.at.k_norm),
                 .norm_epsilon = config_.norm_epsilon,
                 .rotations = rotations_,
                 .rotary = static_cast<int>(config_.rotary.elements)};
  if (w.size() == 1) {
    const float* const bias = vector_at(v, tensors_.at.q_bias);
    const auto part = [&](std::int64_t first) {
      return HeadColumns{first, 3 * d, bias == nullptr ? nullptr : bias + first};
    };
    split.q = part(0);
    split.k = part(d);
    split.v = part(2 * d);
  } else {
    split.q = {w.first(0), d, vector_at(v, tensors_.at.q_bias)};
    split.k = {w.first(1), d, vector_at(v, tensors_.at.k_bias)};
    split.v = {w.first(2), d, vector_at(v, tensors_.at.v_bias)};
  }
  return split;
}

void Decoder::run_block(int, const UnitView& weights, const RaggedBatch& batch, const KvLayer& kv,
                        Stream& stream) {
  const auto& v = weights.vectors;
  const Matrices qkv = side_by_side(weights.matrices, tensors_.at.qkv, tensors_.at.qkv_count);
  const Matrices output = side_by_side(weights.matrices, tensors_.at.output, 1);
  const Matrices up = side_by_side(weights.matrices, tensors_.at.up, tensors_.at.up_count);
  const Matrices down = side_by_side(weights.matrices, tensors_.at.down, 1);
  const std::int64_t rows = batch.tokens;
  const DType type = compute_dtype_;

  normalize(norm_of(vector_at(v, tensors_.at.norm1), vector_at(v, tensors_.at.norm1_beta)), rows,
            stream);
  ops_->matmul_qkv(normed_, type, qkv, split_of(qkv, v), batch, kv, product_, q_, stream);
  ops_->attention(q_, static_cast<int>(config_.heads), batch, kv, slopes_, normed_, type, stream);
  ops_->matmul(normed_, type, rows, output, product_, stream);
  pending_ = {vector_at(v, tensors_.at.output_bias), output.padded_rows()};

  normalize(norm_of(vector_at(v, tensors_.at.norm2), vector_at(v, tensors_.at.norm2_beta)), rows,
            stream);
  const bool gated = up.size() == 2;
  const Activate activate{.activation = config_.activation,
                          .bias = vector_at(v, gated ? tensors_.at.gate_bias : tensors_.at.up_bias),
                          .up = gated ? up.first(1) : -1,
                          .up_bias = gated ? vector_at(v, tensors_.at.up_bias) : nullptr};
  ops_->matmul_activate(normed_, type, rows, up, activate, product_, ffn_, type, stream);
  ops_->matmul(ffn_, type, rows, down, product_, stream);
  pending_ = {vector_at(v, tensors_.at.down_bias), down.padded_rows()};
}

void Decoder::head_input(const std::int32_t* rows, std::int64_t count,
                         std::span<const float* const> head_vectors, void* out, Stream& stream) {
  const Norm norm = norm_of(head_vectors[0], head_vectors.size() > 1 ? head_vectors[1] : nullptr);
  const std::int64_t hidden = config_.hidden;
  if (pending_ && count == tokens_) {  // ascending, each once: all rows, in their order
    ops_->bias_residual_norm(product_, pending_->ld, pending_->bias, x_, norm, count, hidden, out,
                             compute_dtype_, stream);
    pending_.reset();
    return;
  }
  add_pending(tokens_, stream);
  // The blocks are done with `product_`: it holds the chosen rows, of which there are at most
  // `tokens`.
  ops_->gather_rows(x_, DType::kFloat32, rows, count, hidden, product_, stream);
  ops_->normalize(product_, norm, count, hidden, out, compute_dtype_, stream);
}

}  // namespace zi
