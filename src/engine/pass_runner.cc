#include "engine/pass_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "text/generation_settings.h"
#include "zero_infer/bytes.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {

PassRunner::PassRunner(const Parts& parts, Buffer slots)
    : device_(&parts.device),
      ops_(&parts.ops),
      communicator_(parts.communicator),
      model_(&parts.model),
      weights_(&parts.weights),
      plan_(&parts.plan),
      vocabulary_(parts.vocabulary),
      drawable_(parts.drawable),
      world_(parts.world),
      stay_rows_(parts.stay_rows),
      host_shares_(parts.host_shares),
      kv_(device_->allocate(plan_->kv)),
      workspace_(device_->allocate(plan_->workspace)),
      head_workspace_(device_->allocate(plan_->head_workspace)),
      product_exchange_(
          device_->allocate(parts.peers == nullptr ? plan_->product_exchange.bytes() : 0)),
      inputs_(*device_, PassInputs::shape_of(*plan_, model_->config())),
      compute_(device_->make_stream("compute")),
      exchange_(device_->make_stream("gather", StreamPriority::kFirst)) {
  allocate_results();
  network_taken_ = network_passed_ = network_bytes();  // of trials
  embedding_ = std::make_unique<EmbeddingRows>(
      *device_, *ops_, EmbeddingRows::Ways{parts.communicator, exchange_.get(), parts.peers},
      *plan_, model_->config(), parts.rank, weights_->embedding_shard());
  if (parts.world > 1) {
    row_exchange_ = std::make_unique<RowExchange>(*device_, *ops_, *parts.communicator, parts.peers,
                                                  parts.world, product_exchange_.data(),
                                                  plan_->product_exchange, *exchange_);
  }
  // Each wraps the one before, which stays its owner's.
  const auto unowned = [](Ops& ops) { return std::shared_ptr<Ops>(std::shared_ptr<Ops>(), &ops); };
  Ops* of_model = ops_;
  if (plan_->splits()) {
    split_ops_ =
        std::make_unique<SplitOps>(unowned(*of_model), *device_, *parts.host_products,
                                   SplitOps::Memory{plan_->split_products, plan_->host_products});
    of_model = split_ops_.get();
  }
  if (plan_->may_stay()) {
    exchange_ops_ = std::make_unique<ExchangeOps>(unowned(*of_model), *row_exchange_);
    of_model = exchange_ops_.get();
  }
  model_->bind(*of_model, plan_->compute_dtype, workspace_.data(), plan_->pass_tokens, parts.world,
               weights_->model_vectors(), *device_, *compute_);
  head_ = std::make_unique<VocabularyHead>(
      *ops_, *model_, *plan_, parts.rank,
      VocabularyHead::Weights{weights_->head_shard(), weights_->head_vectors()},
      head_workspace_.data(), row_exchange_.get());
  std::vector<const PartitionLayout*> layouts;
  for (const PartitionLayout& layout : plan_->blocks) layouts.push_back(&layout);
  fetcher_ = std::make_unique<LayerFetcher>(*device_, parts.communicator, parts.rank, layouts,
                                            weights_->stores(), plan_->slot_count, *exchange_,
                                            std::move(slots), plan_->all_stay());
  timer_.emplace(*device_, *compute_, *fetcher_);
}

void PassRunner::allocate_results() {
  constexpr int top = kMostLogprobs;
  const auto rows = static_cast<std::size_t>(plan_->pass_tokens);
  const auto tops = rows * static_cast<std::size_t>(top);
  results_memory_ = device_->allocate_pinned(results_bytes(plan_->pass_tokens));
  results_.ids = results_memory_.as<std::int32_t>();
  results_.logprobs = results_memory_.as<float>() + rows;
  results_.top = top;
  results_.top_ids = results_memory_.as<std::int32_t>() + 2 * rows;
  results_.top_logprobs = results_memory_.as<float>() + 2 * rows + tops;
}

std::size_t PassRunner::results_bytes(std::int64_t pass_tokens) {
  return static_cast<std::size_t>(2 * pass_tokens * (1 + kMostLogprobs)) * sizeof(float);
}

void PassRunner::look_up_embedding() {
  embedding_->look_up(inputs_.row_indices(), model_->embedding_rows(), *compute_);
}

void PassRunner::embed() {
  if (inputs_.batch().tokens > 0) model_->embed(inputs_.batch(), *compute_);
}

void PassRunner::sample(const Request& request, const float* logits, std::int64_t begin,
                        std::int64_t count) {
  const std::span<const SampleRow> rows =
      request.samples.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(count));
  const auto scores = [](const SampleRow& row) { return row.target >= 0; };
  // Runs of rows of one kind: mostly all of them.
  for (auto first = rows.begin(); first != rows.end();) {
    const bool score = scores(*first);
    const auto last =
        std::find_if(first, rows.end(), [&](const auto& row) { return scores(row) != score; });
    const std::int64_t row = first - rows.begin();
    SampleResults at = results_;
    at.ids += begin + row;
    at.logprobs += begin + row;
    at.top_ids += (begin + row) * at.top;
    at.top_logprobs += (begin + row) * at.top;
    ops_->sample(logits + row * head_->ld(), head_->ld(), score ? vocabulary_ : drawable_,
                 {first, last}, at, *compute_);
    first = last;
  }
}

void PassRunner::run_head(const Request& request) {
  const auto total = static_cast<std::int64_t>(request.samples.size());
  for (std::int64_t begin = 0; begin < request.most_logits_rows; begin += plan_->head_rows) {
    const std::int64_t most = std::min(plan_->head_rows, request.most_logits_rows - begin);
    const std::int64_t count = std::clamp<std::int64_t>(total - begin, 0, most);
    const float* const logits =
        head_->logits(inputs_.logits_rows() + begin, count, most, *compute_);
    if (count > 0) sample(request, logits, begin, count);
  }
}

void PassRunner::run_block(int unit, const UnitWeights& weights) {
  matrices_.clear();
  for (std::size_t i = 0; i < weights.layout->matrices().size(); ++i) {
    matrices_.push_back(weights.matrix(i));
  }
  KvLayer kv = kv_layer(model_->config(), plan_->compute_dtype);
  const std::size_t layer_bytes = kv.page_bytes() * static_cast<std::size_t>(plan_->kv_pages);
  kv.data = kv_.data() + static_cast<std::size_t>(unit) * layer_bytes;
  model_->run_block(unit, {matrices_, weights_->block_vectors(unit)}, inputs_.batch(), kv,
                    *compute_);
}

void PassRunner::run_blocks(const Request& request) {
  if (stays_) exchange_ops_->begin_pass(most_rows_);
  const bool runs = runs_blocks(request);
  look_up_embedding();
  embed();
  timer_->mark(PassTimer::Point::kBlocks);
  fetcher_->run_pass(
      [&](int unit, const UnitWeights& weights) {
        timer_->begin_unit(unit);
        if (runs) run_block(unit, weights);
        timer_->end_unit();
      },
      *compute_, {.last = request.last, .stays = stays_, .host_share = host_share()},
      // Its exchange comes before the next pass's gathers, on every rank.
      [&] {
        timer_->mark(PassTimer::Point::kHead);
        run_head(request);
      });
}

/// Others need the own rows of each matrix where weights stay: a rank without rows runs with none.
bool PassRunner::runs_blocks(const Request& request) const {
  return stays_ || !request.chunks.empty();
}

double PassRunner::host_share() const {
  if (!split_ops_ || (world_ > 1 && !stays_)) return 0;
  return host_shares_.at(most_rows_ * world_);
}

std::int64_t PassRunner::most_rows(const Request& request) const {
  std::int64_t most = 0;
  const std::size_t of_rank = request.ids.size() / static_cast<std::size_t>(world_);
  for (std::size_t rank = 0; of_rank > 0 && rank < static_cast<std::size_t>(world_); ++rank) {
    const auto ids = request.ids.subspan(rank * of_rank, of_rank);
    most = std::max<std::int64_t>(most, std::ranges::find(ids, kNoId) - ids.begin());
  }
  return most;
}

std::unique_ptr<Graph> PassRunner::record(const std::function<void()>& work) {
  try {
    return device_->record(*compute_, work);
  } catch (const CudaError& error) {
    graphs_failed_ = true;
    log_warning(fmt::format("passes run without CUDA graphs: {}", error.what()));
    return nullptr;
  }
}

bool PassRunner::recordable(const Request& request) const {
  const auto rows = static_cast<std::int64_t>(request.samples.size());
  const bool decoding =
      std::ranges::all_of(request.chunks, [](const Chunk& c) { return c.count == 1; });
  // Where ranks exchange by collective calls, whether these can stand in a graph is not known.
  const bool may_record = world_ == 1 ? rows > 0 : row_exchange_->recordable();
  return may_record && decoding && request.most_logits_rows > 0 &&
         request.most_logits_rows <= plan_->head_rows && fetcher_->all_resident(stays_) &&
         ops_->recordable();
}

const PassRunner::RecordedPass* PassRunner::recorded_pass(const Request& request) {
  if (!recordable(request)) return nullptr;
  const Shape shape{request.chunks.size(),    inputs_.batch().max_pages,
                    request.samples.size(),   most_rows_,
                    request.most_logits_rows, stays_};
  RecordedPass* const found = graphs_.find(shape);
  if (found == nullptr) {
    // Recording costs as much as some passes: for shapes that come again. The kernels that this
    // shape needs are loaded by its first pass.
    graphs_.add(shape);
    return nullptr;
  }
  if (graphs_failed_) return nullptr;
  RecordedPass& pass = *found;
  if (pass.graph == nullptr) {
    if (stays_) exchange_ops_->begin_pass(most_rows_);
    pass.graph = record([&] {
      embed();
      const int blocks = runs_blocks(request) ? static_cast<int>(plan_->blocks.size()) : 0;
      for (int unit = 0; unit < blocks; ++unit) {
        run_block(unit, fetcher_->resident_weights(unit, stays_));
      }
      head_->logits(inputs_.logits_rows(), static_cast<std::int64_t>(request.samples.size()),
                    request.most_logits_rows, *compute_);
    });
    if (row_exchange_) pass.exchanged = row_exchange_->take_exchanged();  // nothing has run
  }
  return pass.graph == nullptr ? nullptr : &pass;
}

void PassRunner::enqueue(const Request& request) {
  timer_->mark(PassTimer::Point::kEmbed);
  inputs_.upload(request.chunks, request.logits_rows, embedding_->indices(request.ids), *compute_);
  if (const RecordedPass* const pass = recorded_pass(request)) {
    look_up_embedding();
    timer_->mark(PassTimer::Point::kBlocks);
    // Nothing travels: this only counts the pass.
    fetcher_->run_pass({}, *compute_, {.last = request.last, .stays = stays_});
    pass->graph->launch(*compute_);
    if (row_exchange_) row_exchange_->add_exchanged(pass->exchanged);
    timer_->mark(PassTimer::Point::kHead);
    timer_->replayed();
    sample(request, head_->last_logits(), 0, static_cast<std::int64_t>(request.samples.size()));
  } else {
    run_blocks(request);
  }
  timer_->mark(PassTimer::Point::kEnd);
}

void PassRunner::run(const Request& request) {
  most_rows_ = most_rows(request);
  stays_ = plan_->may_stay() && most_rows_ <= stay_rows_;
  timer_->begin_pass(request.chunks, stays_);
  enqueue(request);
  timer_->deliver_earlier();  // while the device is at work
  compute_->synchronize();
  if (split_ops_) split_ops_->check();
  const Exchanged moved = row_exchange_ ? row_exchange_->take_exchanged() : Exchanged{};
  const std::uint64_t network = network_bytes();
  timer_->end_pass(moved, network - std::exchange(network_passed_, network));
  exchanged_ += moved;
}

void PassRunner::observe(PassObserver observer) { timer_->observe(std::move(observer)); }

Exchanged PassRunner::take_exchanged() { return std::exchange(exchanged_, {}); }

FetchStats PassRunner::take_fetch_stats() {
  FetchStats stats = fetcher_->take_stats();
  const std::uint64_t now = network_bytes();
  stats.bytes[Link::kNetwork] = now - std::exchange(network_taken_, now);
  return stats;
}

PerLink<std::uint64_t> PassRunner::moved() const {
  PerLink<std::uint64_t> bytes;
  for (const Link link : kTravelLinks) bytes[link] = fetcher_->moved()[link];
  bytes[Link::kGather] += exchanged_.bytes;
  bytes[Link::kNetwork] = network_bytes() - network_taken_;
  return bytes;
}

}  // namespace zi
