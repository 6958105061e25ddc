#include "engine/vocabulary_head.h"

#include "zero_infer/bytes.h"

namespace zi {
namespace {

struct Parts {
  std::size_t hidden;
  std::size_t logits;
};

Parts parts(std::int64_t rows, std::int64_t hidden, DType dtype, std::int64_t slice, int world) {
  const auto part = [](std::int64_t elements, std::size_t size) {
    return align_up(static_cast<std::size_t>(elements) * size, kMatrixAlignment);
  };
  return {part(rows * hidden, size_of(dtype)), part(rows * slice * world, sizeof(float))};
}

}  // namespace

std::size_t VocabularyHead::workspace_bytes(std::int64_t rows, std::int64_t hidden,
                                            DType compute_dtype, std::int64_t rows_per_rank,
                                            int world) {
  const Parts p = parts(rows, hidden, compute_dtype, rows_per_rank, world);
  if (world == 1) return p.hidden + p.logits;
  return p.hidden * (1 + static_cast<std::size_t>(world)) + 3 * p.logits;
}

VocabularyHead::VocabularyHead(Device& device, Ops& ops, Model& model, Communicator* communicator,
                               const MemoryPlan& plan, int rank, int world, const Weights& weights,
                               std::byte* workspace, Stream& exchange)
    : device_(&device),
      ops_(&ops),
      model_(&model),
      communicator_(communicator),
      exchange_(&exchange),
      vectors_(weights.vectors),
      matrix_(plan.head.front().own(0, weights.shard, rank)),
      compute_dtype_(plan.compute_dtype),
      hidden_size_(model.config().hidden),
      slice_(plan.head.front().matrices().front().rows_per_rank),
      world_(world),
      computed_(device.make_event()),
      exchanged_(device.make_event()) {
  const Parts p = parts(plan.head_rows, hidden_size_, compute_dtype_, slice_, world);
  const auto take = [&workspace](std::size_t bytes) {
    std::byte* const at = workspace;
    workspace += bytes;
    return at;
  };
  hidden_ = take(p.hidden);
  logits_ = reinterpret_cast<float*>(take(p.logits));
  if (world == 1) return;
  slices_ = reinterpret_cast<float*>(take(p.logits));
  received_ = reinterpret_cast<float*>(take(p.logits));
  all_hidden_ = take(p.hidden * static_cast<std::size_t>(world));
}

const float* VocabularyHead::logits(const std::int32_t* rows, std::int64_t count, std::int64_t most,
                                    Stream& compute) {
  if (count > 0) model_->head_input(rows, count, vectors_, hidden_, compute);
  if (world_ == 1) {
    ops_->matmul(hidden_, compute_dtype_, count, matrix_, logits_, compute);
    return logits_;
  }
  const auto hidden_bytes = static_cast<std::size_t>(most * hidden_size_) * size_of(compute_dtype_);
  const auto slice_bytes = static_cast<std::size_t>(most * slice_) * sizeof(float);

  compute.record(*computed_);
  exchange_->wait(*computed_);  // hidden states are complete, the last call's buffers are free
  communicator_->all_gather(hidden_, all_hidden_, hidden_bytes, *exchange_);
  exchange_->record(*exchanged_);

  compute.wait(*exchanged_);
  ops_->matmul(all_hidden_, compute_dtype_, most * world_, matrix_, slices_, compute);
  compute.record(*computed_);

  exchange_->wait(*computed_);
  communicator_->all_to_all(slices_, received_, slice_bytes, *exchange_);
  exchange_->record(*exchanged_);

  compute.wait(*exchanged_);
  ops_->interleave(received_, world_, most, slice_, logits_, compute);
  return logits_;
}

}  // namespace zi
