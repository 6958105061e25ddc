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

/// What a pass needs to be told, on its way to the device: the ragged batch's indices and those of
/// its embedding rows, filled on the host in pinned memory and copied in one go. Passes with as
/// many sequences, pages of the longest (in powers of two) and logits rows have all but the
/// embedding rows in the same places: recorded passes rely on it.
class PassInputs {
 public:
  struct Shape {
    std::int64_t lanes;
    std::int64_t pass_tokens;
    std::int64_t kv_pages;
    std::int64_t row_indices;
  };

  /// Of the passes that a plan has room for.
  static Shape shape_of(const MemoryPlan& plan, const ModelConfig& config);

  PassInputs(Device& device, const Shape& shape);

  /// Device bytes, and as many pinned ones.
  static std::size_t bytes(const Shape& shape);

  /// Describes the chunks, the rows whose logits are wanted and the embedding rows, and enqueues
  /// the copy. The last pass's copy must be done.
  void upload(std::span<const Chunk> chunks, std::span<const std::int32_t> logits_rows,
              std::span<const std::int32_t> row_indices, Stream& stream);

  const RaggedBatch& batch() const { return batch_; }
  const std::int32_t* logits_rows() const {
    return device_memory_.as<std::int32_t>() + logits_rows_at_;
  }
  const std::int32_t* row_indices() const {
    return device_memory_.as<std::int32_t>() + row_indices_at_;
  }

 private:
  Device* device_;
  Shape shape_;
  Buffer host_;
  Buffer device_memory_;
  RaggedBatch batch_;
  std::size_t logits_rows_at_ = 0;
  std::size_t row_indices_at_ = 0;
};

}  // namespace zi
