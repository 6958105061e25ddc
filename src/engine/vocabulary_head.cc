#include "engine/vocabulary_head.h"

#include <array>

#include "zero_infer/bytes.h"

namespace zi {
namespace {

std::size_t hidden_bytes(const MemoryPlan& plan, const ModelConfig& config) {
  return align_up(
      static_cast<std::size_t>(plan.head_rows * config.hidden) * size_of(plan.compute_dtype),
      kMatrixAlignment);
}

}  // namespace

std::size_t VocabularyHead::workspace_bytes(const MemoryPlan& plan, const ModelConfig& config) {
  const PartitionLayout& head = plan.head.front();
  const std::int64_t columns = head.matrices().front().rows_per_rank * head.world();
  return hidden_bytes(plan, config) +
         align_up(static_cast<std::size_t>(plan.head_rows * columns) * sizeof(float),
                  kMatrixAlignment);
}

RowExchange::Room VocabularyHead::exchange_room(const MemoryPlan& plan, const ModelConfig& config) {
  const PartitionLayout& head = plan.head.front();
  const RowExchange::Row row{
      static_cast<std::size_t>(config.hidden) * size_of(plan.compute_dtype),
      static_cast<std::size_t>(head.matrices().front().rows_per_rank) * sizeof(float)};
  return RowExchange::room(row, plan.head_rows, head.world());
}

VocabularyHead::VocabularyHead(Ops& ops, Model& model, const MemoryPlan& plan, int rank,
                               const Weights& weights, std::byte* workspace, RowExchange* exchange)
    : ops_(&ops),
      model_(&model),
      exchange_(exchange),
      vectors_(weights.vectors),
      matrix_(plan.head.front().own(0, weights.shard, rank)),
      compute_dtype_(plan.compute_dtype),
      hidden_size_(model.config().hidden),
      slice_(plan.head.front().matrices().front().rows_per_rank),
      world_(plan.head.front().world()),
      hidden_(workspace),
      logits_(reinterpret_cast<float*>(workspace + hidden_bytes(plan, model.config()))) {}

const float* VocabularyHead::logits(const std::int32_t* rows, std::int64_t count, std::int64_t most,
                                    Stream& compute) {
  if (count > 0) model_->head_input(rows, count, vectors_, hidden_, compute);
  if (exchange_ == nullptr) {
    ops_->matmul(hidden_, compute_dtype_, count, matrix_, logits_, compute);
    return logits_;
  }
  const std::array slices = {slice_};
  const RowExchange::Product product{
      .inputs = hidden_,
      .input_row = static_cast<std::size_t>(hidden_size_) * size_of(compute_dtype_),
      .results = logits_,
      .type = DType::kFloat32,
      .slices = slices};
  exchange_->run(
      product, most,
      [&](const std::byte* inputs, std::int64_t all, std::byte* results) {
        ops_->matmul(inputs, compute_dtype_, all, matrix_, reinterpret_cast<float*>(results),
                     compute);
      },
      compute);
  return logits_;
}

}  // namespace zi
