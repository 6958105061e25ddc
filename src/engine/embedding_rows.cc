#include "engine/embedding_rows.h"

#include <algorithm>
#include <array>

#include "zero_infer/bytes.h"

namespace zi {
namespace {

/// For rows on their way, both directions together. A decoding pass of usual batches is one round,
/// and a pass of prompts computes far longer than its rounds take.
constexpr std::size_t kHostExchange = std::size_t{8} << 20;
constexpr std::size_t kDeviceExchange = std::size_t{32} << 20;

/// Bytes of one token of every rank, sent and received.
std::size_t token_bytes(const EmbeddingRows::Shape& s) {
  return 2 * static_cast<std::size_t>(s.world * s.hidden) * sizeof(float);
}

}  // namespace

EmbeddingRows::Shape EmbeddingRows::shape_of(const MemoryPlan& plan, const ModelConfig& config) {
  return {.pass_tokens = plan.pass_tokens,
          .hidden = config.hidden,
          .world = plan.embedding_layout().world(),
          .device_is_host = plan.device_is_host};
}

std::int64_t EmbeddingRows::round_tokens(const Shape& s) {
  const std::size_t bytes = s.device_is_host ? kHostExchange : kDeviceExchange;
  return std::clamp<std::int64_t>(static_cast<std::int64_t>(bytes / token_bytes(s)), 1,
                                  s.pass_tokens);
}

std::size_t EmbeddingRows::workspace_bytes(const Shape& s) {
  return s.world == 1 ? 0 : static_cast<std::size_t>(round_tokens(s)) * token_bytes(s);
}

std::int64_t EmbeddingRows::most_indices(const Shape& s) {
  return s.world == 1 ? s.pass_tokens : s.pass_tokens * (1 + s.world);
}

EmbeddingRows::EmbeddingRows(Device& device, Ops& ops, const Ways& ways, const MemoryPlan& plan,
                             const ModelConfig& config, int rank, const std::byte* shard)
    : ops_(&ops),
      ways_(ways),
      peers_room_(plan.product_exchange),
      shape_(shape_of(plan, config)),
      rank_(static_cast<std::size_t>(rank)),
      table_(plan.embedding_layout().own(0, shard, rank).data),
      format_(plan.embedding_layout().matrices().front().format),
      rows_per_rank_(plan.embedding_layout().matrices().front().rows_per_rank) {
  if (shape_.world == 1) return;
  packed_ = device.make_event();
  arrived_ = device.make_event();
  memory_ = device.allocate(workspace_bytes(shape_));
  sent_ = memory_.as<float>();
  received_ = sent_ + memory_.bytes() / sizeof(float) / 2;
}

std::span<const std::int32_t> EmbeddingRows::indices(std::span<const std::int32_t> ids) {
  const auto most = static_cast<std::int64_t>(ids.size()) / shape_.world;
  const auto own =
      ids.subspan(rank_ * static_cast<std::size_t>(most), static_cast<std::size_t>(most));
  tokens_ = std::ranges::find(own, kNoId) - own.begin();
  indices_.assign(own.begin(), own.begin() + tokens_);
  rounds_.clear();
  if (shape_.world == 1) return indices_;
  for (std::int64_t first = 0; first < most; first += round_tokens(shape_)) {
    rounds_.push_back(begin_round(ids, first));
  }
  return indices_;
}

EmbeddingRows::Round EmbeddingRows::begin_round(std::span<const std::int32_t> ids,
                                                std::int64_t first) {
  const auto world = static_cast<std::size_t>(shape_.world);
  const std::size_t most = ids.size() / world;
  const auto begin = static_cast<std::size_t>(first);
  const std::size_t end = std::min(begin + static_cast<std::size_t>(round_tokens(shape_)), most);
  /// Calls each(owner, asker, token, n): it is the n-th row that this owner sends to the asker.
  const auto for_each = [&](const auto& each) {
    counts_.assign(world * world, 0);
    for (std::size_t asker = 0; asker < world; ++asker) {
      for (std::size_t t = begin; t < end && ids[asker * most + t] != kNoId; ++t) {
        const auto owner = static_cast<std::size_t>(ids[asker * most + t] / rows_per_rank_);
        each(owner, asker, t, static_cast<std::size_t>(counts_[owner * world + asker]++));
      }
    }
  };
  for_each([](auto...) {});
  const auto block = static_cast<std::size_t>(std::ranges::max(counts_));
  const std::size_t bytes = world * block * static_cast<std::size_t>(shape_.hidden) * sizeof(float);
  const bool one_round = static_cast<std::int64_t>(most) <= round_tokens(shape_);
  const bool by_peers = ways_.peers != nullptr && one_round && bytes <= peers_room_.results;
  const std::size_t sends = indices_.size();
  indices_.resize(sends + world * block, 0);
  for_each([&](std::size_t owner, std::size_t asker, std::size_t t, std::size_t n) {
    if (owner == rank_) {
      indices_[sends + asker * block + n] = static_cast<std::int32_t>(
          ids[asker * most + t] - static_cast<std::int64_t>(owner) * rows_per_rank_);
    }
    if (asker != rank_) return;
    indices_[t] = static_cast<std::int32_t>(by_peers ? n * world + owner : owner * block + n);
  });
  return {.first = first,
          .own = std::clamp<std::int64_t>(tokens_ - first, 0, round_tokens(shape_)),
          .block = static_cast<std::int64_t>(block),
          .by_peers = by_peers};
}

void EmbeddingRows::exchange(const Round& round, Stream& compute) {
  if (round.by_peers) {
    const std::array slices = {shape_.hidden};
    ways_.peers->return_results(sent_, DType::kFloat32, round.block, slices, peers_room_.inputs,
                                received_, compute);
    return;
  }
  compute.record(*packed_);
  ways_.exchange->wait(*packed_);  // the rows are complete, those of the last round are taken
  ways_.communicator->all_to_all(
      sent_, received_, static_cast<std::size_t>(round.block * shape_.hidden) * sizeof(float),
      *ways_.exchange);
  ways_.exchange->record(*arrived_);
  compute.wait(*arrived_);
}

void EmbeddingRows::look_up(const std::int32_t* on_device, float* out, Stream& compute) {
  const std::int64_t hidden = shape_.hidden;
  if (shape_.world == 1) {
    ops_->gather_rows(table_, format_, on_device, tokens_, hidden, out, compute);
    return;
  }
  const std::int32_t* sends = on_device + tokens_;
  for (const Round& round : rounds_) {
    const std::int64_t rows = shape_.world * round.block;
    ops_->gather_rows(table_, format_, sends, rows, hidden, sent_, compute);
    sends += rows;
    exchange(round, compute);
    if (round.own == 0) continue;
    ops_->gather_rows(received_, DType::kFloat32, on_device + round.first, round.own, hidden,
                      out + round.first * hidden, compute);
  }
}

}  // namespace zi
