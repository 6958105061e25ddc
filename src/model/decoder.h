#pragma once

#include <optional>
#include <vector>

#include "model/decoder_spec.h"
#include "model/family.h"
#include "zero_infer/model.h"

namespace zi {

/// A decoder-only transformer with norms before attention and MLP, as its family and its config
/// describe it.
class Decoder final : public Model {
 public:
  /// Throws CheckpointError for shapes that no backend computes.
  Decoder(const ModelConfig& config, const Family& family, bool has_lm_head);

  const ModelConfig& config() const override { return config_; }
  const ModelSpec& spec() const override { return tensors_.spec; }
  std::vector<BlockProduct> products() const override;
  std::size_t workspace_bytes(std::int64_t tokens, std::int64_t row_multiple) const override;
  void bind(Ops& ops, DType compute_dtype, std::byte* workspace, std::int64_t tokens,
            std::int64_t row_multiple, std::span<const float* const> vectors, Device& device,
            Stream& stream) override;
  float* embedding_rows() override { return x_; }
  void embed(const RaggedBatch& batch, Stream& stream) override;
  void run_block(int block, const UnitView& weights, const RaggedBatch& batch, const KvLayer& kv,
                 Stream& stream) override;
  void head_input(const std::int32_t* rows, std::int64_t count,
                  std::span<const float* const> head_vectors, void* out, Stream& stream) override;

 private:
  /// Offsets of the activations in the workspace, in bytes; all but the last two hold a row per
  /// token.
  struct Workspace {
    std::size_t x;            // (tokens, hidden) float32: the residual
    std::size_t normed;       // input of a product, then the attention's output
    std::size_t product;      // (tokens, widest product) float32
    std::size_t q;            // (tokens, heads * head_dim) float32
    std::size_t ffn;          // (tokens, ffn): input of the last product
    std::size_t rotations;    // (tokens, rotary.elements) float32
    std::size_t slopes;       // (heads) float32, with ALiBi
    std::size_t frequencies;  // (rotary.elements / 2) float32
    std::size_t bytes;
  };
  Workspace layout(std::int64_t tokens, std::int64_t row_multiple) const;
  Norm norm_of(const float* gamma, const float* beta) const;
  QkvSplit split_of(const Matrices& w, std::span<const float* const> vectors) const;
  /// Adds the pending product to x and writes the normed x to `normed`; with residual_after_norm x
  /// itself becomes the normed value.
  void normalize(const Norm& norm, std::int64_t tokens, Stream& stream);
  void add_pending(std::int64_t tokens, Stream& stream);

  ModelConfig config_;
  bool centred_norms_;
  std::int64_t first_position_;
  DecoderSpec tensors_;
  std::vector<float> host_slopes_;       // empty: no ALiBi
  std::vector<float> host_frequencies_;  // empty: no rotary positions

  /// The last product of a block, which waits to be added to x: the next norm does both at once.
  struct Pending {
    const float* bias;
    std::int64_t ld;
  };

  Ops* ops_ = nullptr;
  DType compute_dtype_ = DType::kBFloat16;
  std::span<const float* const> vectors_;
  float* x_ = nullptr;
  std::byte* normed_ = nullptr;
  float* product_ = nullptr;
  float* q_ = nullptr;
  std::byte* ffn_ = nullptr;
  float* rotations_ = nullptr;
  float* slopes_ = nullptr;
  float* frequencies_ = nullptr;
  std::optional<Pending> pending_;  // in product_
  std::int64_t tokens_ = 0;         // of the pass
};

}  // namespace zi
