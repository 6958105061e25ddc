#pragma once

#include <optional>
#include <vector>

#include "zero_infer/model.h"

namespace zi {

/// BLOOM (Le Scao et al. 2022): LayerNorm after the embedding, pre-norm blocks, fused QKV
/// interleaved by head, ALiBi, GELU in its tanh form, the head tied to the embedding.
class Bloom final : public Model {
 public:
  Bloom(const ModelConfig& config, bool has_lm_head);

  const ModelConfig& config() const override { return config_; }
  const ModelSpec& spec() const override { return spec_; }
  std::size_t workspace_bytes(std::int64_t tokens, std::int64_t row_multiple) const override;
  void bind(Ops& ops, DType compute_dtype, std::byte* workspace, std::int64_t tokens,
            std::int64_t row_multiple, std::span<const float* const> vectors, Device& device,
            Stream& stream) override;
  void embed(const void* embedding, DType dtype, const std::int32_t* rows, std::int64_t tokens,
             Stream& stream) override;
  void run_block(int block, const UnitView& weights, const RaggedBatch& batch, const KvLayer& kv,
                 Stream& stream) override;
  void head_input(const std::int32_t* rows, std::int64_t count,
                  std::span<const float* const> head_vectors, void* out, Stream& stream) override;

 private:
  /// Offsets of the activations in the workspace, in bytes; all but `slopes` hold a row per token.
  struct Workspace {
    std::size_t x;        // (tokens, hidden) float32: the residual
    std::size_t normed;   // (tokens, hidden): input of a product, then the attention's output
    std::size_t product;  // (tokens, widest product) float32
    std::size_t q;        // (tokens, hidden) float32
    std::size_t ffn;      // (tokens, ffn): input of the last product
    std::size_t slopes;   // (heads) float32
    std::size_t bytes;
  };
  Workspace layout(std::int64_t tokens, std::int64_t row_multiple) const;
  /// Adds the pending product to x and writes the normed x to `normed`; with residual_after_norm x
  /// itself becomes the normed value.
  void norm(const float* weight, const float* bias, std::int64_t tokens, Stream& stream);

  ModelConfig config_;
  ModelSpec spec_;
  std::vector<float> host_slopes_;

  /// The last product of a block, which waits to be added to x: the next norm does both at once.
  struct Pending {
    const float* bias;
    std::int64_t ld;
  };
  void add_pending(std::int64_t tokens, Stream& stream);

  Ops* ops_ = nullptr;
  DType compute_dtype_ = DType::kBFloat16;
  std::span<const float* const> vectors_;
  float* x_ = nullptr;
  std::byte* normed_ = nullptr;
  float* product_ = nullptr;
  float* q_ = nullptr;
  std::byte* ffn_ = nullptr;
  float* slopes_ = nullptr;
  std::optional<Pending> pending_;  // in product_
  std::int64_t tokens_ = 0;         // of the pass
};

}  // namespace zi
