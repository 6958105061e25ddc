#include "engine/pass_runner.h"

#include <algorithm>

#include "zero_infer/bytes.h"
#include "zero_infer/error.h"

namespace zi {

PassRunner::PassRunner(Device& device, Ops& ops, Communicator* communicator, Model& model,
                       const ModelWeights& weights, const MemoryPlan& plan, int rank, int world,
                       std::int64_t vocabulary, int top, Buffer slots)
    : device_(&device),
      ops_(&ops),
      model_(&model),
      weights_(&weights),
      plan_(&plan),
      vocabulary_(vocabulary),
      kv_(device.allocate(plan.kv)),
      workspace_(device.allocate(plan.workspace)),
      head_workspace_(device.allocate(plan.head_workspace)),
      inputs_(device, plan.input_shape(model.config())),
      compute_(device.make_stream("compute")),
      exchange_(device.make_stream("gather")) {
  const auto rows = static_cast<std::size_t>(plan.pass_tokens);
  const auto tops = rows * static_cast<std::size_t>(top);
  results_memory_ = device.allocate_pinned((2 * rows + 2 * tops) * sizeof(float));
  results_.ids = results_memory_.as<std::int32_t>();
  results_.logprobs = results_memory_.as<float>() + rows;
  results_.top = top;
  results_.top_ids = results_memory_.as<std::int32_t>() + 2 * rows;
  results_.top_logprobs = results_memory_.as<float>() + 2 * rows + tops;

  model.bind(ops, plan.compute_dtype, workspace_.data(), plan.pass_tokens, world,
             weights.model_vectors(), device, *compute_);
  head_ = std::make_unique<VocabularyHead>(
      device, ops, model, communicator, plan, rank, world,
      VocabularyHead::Weights{weights.head_shard(), weights.head_vectors()}, head_workspace_.data(),
      *exchange_);
  std::vector<const PartitionLayout*> layouts;
  for (const PartitionLayout& layout : plan.blocks) layouts.push_back(&layout);
  fetcher_ = std::make_unique<LayerFetcher>(device, communicator, rank, layouts, weights.stores(),
                                            plan.slot_count, *exchange_, std::move(slots));
}

void PassRunner::embed(std::span<const Chunk> chunks) {
  ids_.clear();
  for (const Chunk& c : chunks) {
    const auto first = c.sequence->tokens.begin() + c.first;
    ids_.insert(ids_.end(), first, first + c.count);
  }
  weights_->read_embedding_rows(ids_, inputs_.embedding_staging());
}

void PassRunner::run_head(const Request& request) {
  const auto total = static_cast<std::int64_t>(request.samples.size());
  for (std::int64_t begin = 0; begin < request.most_logits_rows; begin += plan_->head_rows) {
    const std::int64_t most = std::min(plan_->head_rows, request.most_logits_rows - begin);
    const std::int64_t count = std::clamp<std::int64_t>(total - begin, 0, most);
    const float* const logits =
        head_->logits(inputs_.logits_rows() + begin, count, most, *compute_);
    if (count == 0) continue;
    SampleResults at = results_;
    at.ids += begin;
    at.logprobs += begin;
    at.top_ids += begin * at.top;
    at.top_logprobs += begin * at.top;
    ops_->sample(
        logits, head_->ld(), vocabulary_,
        request.samples.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(count)),
        at, *compute_);
  }
}

void PassRunner::run(const Request& request) {
  const bool idle = request.chunks.empty();
  if (!idle) {
    embed(request.chunks);
    inputs_.upload(request.chunks, request.logits_rows, *compute_);
    model_->embed(inputs_.embedding_rows(), plan_->weight_dtype, inputs_.batch().tokens, *compute_);
  }
  const ModelConfig& config = model_->config();
  const auto last = static_cast<int>(plan_->blocks.size()) - 1;
  KvLayer kv{.data = kv_.data(),
             .dtype = plan_->compute_dtype,
             .heads = static_cast<int>(config.heads),
             .head_dim = static_cast<int>(config.head_dim)};
  const std::size_t layer_bytes = kv.page_bytes() * static_cast<std::size_t>(plan_->kv_pages);
  fetcher_->run_pass(
      [&](int unit, const UnitWeights& weights) {
        if (!idle) {
          matrices_.clear();
          for (std::size_t i = 0; i < weights.layout->matrices().size(); ++i) {
            matrices_.push_back(weights.matrix(i));
          }
          kv.data = kv_.data() + static_cast<std::size_t>(unit) * layer_bytes;
          model_->run_block(unit, {matrices_, weights_->block_vectors(unit)}, inputs_.batch(), kv,
                            *compute_);
        }
        // Inside the last body: behind it the fetcher goes on to the next pass's units.
        if (unit == last) run_head(request);
      },
      *compute_, request.last);
  compute_->synchronize();
  for (std::size_t i = 0; i < request.samples.size(); ++i) {
    if (results_.ids[i] != kNoId) continue;
    throw Error(
        "the logits of a token hold NaN or infinity; the weights are damaged or the compute type "
        "overflows, try --compute-dtype float32");
  }
}

FetchStats PassRunner::take_fetch_stats() { return fetcher_->take_stats(); }

}  // namespace zi
