#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "engine/memory_plan.h"
#include "zero_infer/communicator.h"
#include "zero_infer/device.h"
#include "zero_infer/model.h"
#include "zero_infer/ops.h"

namespace zi {

/// The LM head, cut by vocabulary rows, which stays where it is: the last hidden states of all
/// ranks are gathered (small), each rank multiplies its rows, and the logits go back to the rank
/// that owns the sequence. Gathering the head's weights instead would cost as much as one and a
/// half blocks.
class VocabularyHead {
 public:
  struct Weights {
    const std::byte* shard;
    std::span<const float* const> vectors;
  };

  /// `workspace` holds plan.head_workspace bytes of device memory. `communicator` is null for a
  /// world of one; its calls go to `exchange`, the stream of all of its calls.
  VocabularyHead(Device& device, Ops& ops, Model& model, Communicator* communicator,
                 const MemoryPlan& plan, int rank, int world, const Weights& weights,
                 std::byte* workspace, Stream& exchange);

  /// Device bytes that it needs.
  static std::size_t workspace_bytes(std::int64_t rows, std::int64_t hidden, DType compute_dtype,
                                     std::int64_t rows_per_rank, int world);

  /// Collective. Logits of the `count` pass rows named by `rows` (device); `most` >= count is the
  /// largest count of any rank, at most plan.head_rows. Returns (count, ld()) in device memory,
  /// valid until the next call.
  const float* logits(const std::int32_t* rows, std::int64_t count, std::int64_t most,
                      Stream& compute);
  /// Where `logits` puts them.
  const float* last_logits() const { return logits_; }
  std::int64_t ld() const { return slice_ * world_; }

 private:
  Device* device_;
  Ops* ops_;
  Model* model_;
  Communicator* communicator_;
  Stream* exchange_;
  std::span<const float* const> vectors_;
  RowBlockMatrix matrix_;
  DType compute_dtype_;
  std::int64_t hidden_size_;
  std::int64_t slice_;  // vocabulary rows of a rank, padded
  int world_;
  std::unique_ptr<Event> computed_;
  std::unique_ptr<Event> exchanged_;

  // In the workspace:
  std::byte* hidden_ = nullptr;      // (most, hidden) of the compute type
  std::byte* all_hidden_ = nullptr;  // (world, most, hidden)
  float* slices_ = nullptr;    // (world, most, slice): this rank's rows for everybody's tokens
  float* received_ = nullptr;  // (world, most, slice): everybody's rows for this rank's tokens
  float* logits_ = nullptr;    // (most, world * slice)
};

}  // namespace zi
