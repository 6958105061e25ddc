#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/memory_plan.h"
#include "engine/row_exchange.h"
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

  /// `workspace` holds plan.head_workspace bytes of device memory. `exchange` is null for a world
  /// of one.
  VocabularyHead(Ops& ops, Model& model, const MemoryPlan& plan, int rank, const Weights& weights,
                 std::byte* workspace, RowExchange* exchange);

  /// Device bytes that it needs, in addition to those of the exchange.
  static std::size_t workspace_bytes(const MemoryPlan& plan, const ModelConfig& config);
  /// Of its exchange, for plan.head_rows at once.
  static RowExchange::Room exchange_room(const MemoryPlan& plan, const ModelConfig& config);

  /// Collective. Logits of the `count` pass rows named by `rows` (device); `most` >= count is the
  /// largest count of any rank, at most plan.head_rows. Returns (count, ld()) in device memory,
  /// valid until the next call.
  const float* logits(const std::int32_t* rows, std::int64_t count, std::int64_t most,
                      Stream& compute);
  /// Where `logits` puts them.
  const float* last_logits() const { return logits_; }
  std::int64_t ld() const { return slice_ * world_; }

 private:
  Ops* ops_;
  Model* model_;
  RowExchange* exchange_;
  std::span<const float* const> vectors_;
  RowBlockMatrix matrix_;
  DType compute_dtype_;
  std::int64_t hidden_size_;
  std::int64_t slice_;  // vocabulary rows of a rank, padded
  int world_;

  // In the workspace:
  std::byte* hidden_;  // (plan.head_rows, hidden) of the compute type
  float* logits_;      // (plan.head_rows, world * slice)
};

}  // namespace zi
