#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/memory_plan.h"
#include "engine/scheduler.h"
#include "zero_infer/device.h"
#include "zero_infer/model_config.h"
#include "zero_infer/ops.h"

namespace zi {

/// What a pass needs to be told, on its way to the device: the ragged batch's indices and the
/// embedding rows, filled on the host in pinned memory and copied in one go.
class PassInputs {
 public:
  struct Shape {
    std::int64_t lanes;
    std::int64_t pass_tokens;
    std::int64_t kv_pages;
    std::size_t embedding_row_bytes;
  };

  /// Of the passes that a plan has room for.
  static Shape shape_of(const MemoryPlan& plan, const ModelConfig& config);

  PassInputs(Device& device, const Shape& shape);

  /// Device bytes, and as many pinned ones.
  static std::size_t bytes(const Shape& shape);

  /// Describes the chunks and the rows whose logits are wanted, and enqueues the copy. The
  /// embedding rows must have been written to `embedding_staging` before, or be on the device: then
  /// `ids` holds the ids of the tokens. The last pass's copy must be done.
  void upload(std::span<const Chunk> chunks, std::span<const std::int32_t> logits_rows,
              std::span<const std::int32_t> ids, Stream& stream);

  std::byte* embedding_staging() const { return host_.data(); }
  const std::byte* embedding_rows() const { return device_memory_.data(); }
  const RaggedBatch& batch() const { return batch_; }
  const std::int32_t* logits_rows() const { return ints(device_memory_) + logits_rows_at_; }
  const std::int32_t* ids() const { return ints(device_memory_) + ids_at_; }

 private:
  std::int32_t* ints(const Buffer& buffer) const;

  Device* device_;
  Shape shape_;
  Buffer host_;
  Buffer device_memory_;
  RaggedBatch batch_;
  std::size_t logits_rows_at_ = 0;
  std::size_t ids_at_ = 0;
};

}  // namespace zi
