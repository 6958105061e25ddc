#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "zero_infer/dtype.h"
#include "zero_infer/model_config.h"
#include "zero_infer/model_spec.h"
#include "zero_infer/ops.h"
#include "zero_infer/partition_layout.h"

namespace zi {

/// One unit's weights as a model sees them, in the order of its UnitSpec. It knows neither tiers
/// nor ranks: matrices come as row blocks, vectors as float32 in device memory.
struct UnitView {
  std::span<const RowBlockMatrix> matrices;
  std::span<const float* const> vectors;
};

/// Matrices of a block that are multiplied side by side.
struct BlockProduct {
  int first;               // in the block's UnitSpec
  int count = 1;           // one after the other
  bool activated = false;  // by Ops::matmul_activate
};

/// The forward pass of a model, written as operations on one device. Partition, tiers, batching and
/// the head are the engine's.
class Model {
 public:
  virtual ~Model() = default;

  virtual const ModelConfig& config() const = 0;
  virtual const ModelSpec& spec() const = 0;
  /// The products of a block, in their order; every block has the same.
  virtual std::vector<BlockProduct> products() const = 0;

  /// Device bytes for the activations of up to `tokens` rows, when products come with their columns
  /// padded to a multiple of `row_multiple` (the world's size).
  virtual std::size_t workspace_bytes(std::int64_t tokens, std::int64_t row_multiple) const = 0;

  /// Hands over the workspace (that many bytes, alive as long as the model is used), the ops, the
  /// type of the products' inputs, and the model's own vectors (in the order of spec().vectors).
  /// Enqueues what must be set up once.
  virtual void bind(Ops& ops, DType compute_dtype, std::byte* workspace, std::int64_t tokens,
                    std::int64_t row_multiple, std::span<const float* const> vectors,
                    Device& device, Stream& stream) = 0;

  /// Where the embedding rows of a pass are to be written before `embed`: (batch.tokens, hidden)
  /// float32 in the workspace.
  virtual float* embedding_rows() = 0;

  /// Starts a pass from its embedding rows.
  virtual void embed(const RaggedBatch& batch, Stream& stream) = 0;

  /// Runs block `block` on the rows of the batch; k and v go to the pages of `kv`.
  virtual void run_block(int block, const UnitView& weights, const RaggedBatch& batch,
                         const KvLayer& kv, Stream& stream) = 0;

  /// Normalises `count` chosen rows (device indices, ascending, each once) for the head: out
  /// (count, hidden) of the compute type.
  virtual void head_input(const std::int32_t* rows, std::int64_t count,
                          std::span<const float* const> head_vectors, void* out,
                          Stream& stream) = 0;
};

/// The model of config.family. `has_lm_head`: the checkpoint stores a head of its own. Throws
/// CheckpointError for a family that is not supported, and for shapes that no backend computes.
std::unique_ptr<Model> make_model(const ModelConfig& config, bool has_lm_head);

/// One layer's part of a model's KV cache, without memory.
KvLayer kv_layer(const ModelConfig& config, DType dtype);
/// Bytes that a token takes in all layers of the KV cache.
std::size_t kv_token_bytes(const ModelConfig& config, DType dtype);

}  // namespace zi
