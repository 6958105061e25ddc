#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/memory_plan.h"
#include "zero_infer/communicator.h"
#include "zero_infer/device.h"
#include "zero_infer/model_config.h"
#include "zero_infer/ops.h"
#include "zero_infer/peer_exchange.h"

namespace zi {

/// Looks up the embedding rows of a pass, on the device. The table is cut by rows over the ranks,
/// as the head is: where they are tied it is the head's shard, else a shard of its own in device
/// memory, or in pinned host memory, of which a GPU reads the rows that it is asked for. A world of
/// one reads rows in place.
///
/// In a larger world every rank knows the token ids of all (they travel with the ranks' control
/// exchange), and so which of its rows go where: it packs them, an all-to-all takes them to those
/// that asked, and these put them in the order of their tokens. Rows travel in float32, in which
/// the model takes them: converted once and then only copied, they have the bits of a world of one.
/// This goes in rounds of some tokens of each rank, so that the memory that it takes is bounded.
class EmbeddingRows {
 public:
  /// What fixes its memory.
  struct Shape {
    std::int64_t pass_tokens;
    std::int64_t hidden;
    int world;
    bool device_is_host;
  };
  static Shape shape_of(const MemoryPlan& plan, const ModelConfig& config);
  /// Device bytes for rows on their way; 0 in a world of one.
  static std::size_t workspace_bytes(const Shape& shape);
  /// Tokens of a rank in one round.
  static std::int64_t round_tokens(const Shape& shape);
  /// Indices of a pass at most.
  static std::int64_t most_indices(const Shape& shape);

  /// The ways of a larger world. A pass of one round goes by the peers, in its own stream, where
  /// they are not null and have room in plan.product_exchange; all others by the communicator,
  /// whose calls go to `exchange`.
  struct Ways {
    Communicator* communicator;
    Stream* exchange;
    PeerExchange* peers;
  };

  /// `shard`: this rank's rows by plan.embedding_layout(), in memory that the device reads.
  EmbeddingRows(Device& device, Ops& ops, const Ways& ways, const MemoryPlan& plan,
                const ModelConfig& config, int rank, const std::byte* shard);

  /// What the device must be told of the next pass, valid until the next call. ids (world, most):
  /// those of each rank's tokens, filled up with kNoId; the same on every rank.
  std::span<const std::int32_t> indices(std::span<const std::int32_t> ids);

  /// Collective, and what a pass exchanges first: every rank has waited for the end of the one
  /// before. Writes the rows of this rank's tokens to out (tokens, hidden) float32.
  /// `on_device`: a copy of the last `indices`.
  void look_up(const std::int32_t* on_device, float* out, Stream& compute);

 private:
  /// Tokens [first, first + round_tokens) of every rank.
  struct Round {
    std::int64_t first;
    std::int64_t own;    // of them this rank's
    std::int64_t block;  // rows that a rank sends to another, filled up with any
    bool by_peers;
  };
  Round begin_round(std::span<const std::int32_t> ids, std::int64_t first);
  /// Sends what is packed.
  void exchange(const Round& round, Stream& compute);

  Ops* ops_;
  Ways ways_;
  RowExchange::Room peers_room_;
  Shape shape_;
  std::size_t rank_;
  const std::byte* table_;
  WeightFormat format_;
  std::int64_t rows_per_rank_;
  std::unique_ptr<Event> packed_;
  std::unique_ptr<Event> arrived_;
  Buffer memory_;
  float* sent_ = nullptr;      // (world, round_tokens, hidden) at most: this rank's rows for each
  float* received_ = nullptr;  // as many: each rank's rows for this one, by rank or side by side

  // Of the next pass. The indices are, for each token, where its row is (in a world of one in the
  // table, else in `received_` of its round); then for each round (world, block) of the own rows
  // that go to each rank.
  std::int64_t tokens_ = 0;
  std::vector<std::int32_t> indices_;
  std::vector<Round> rounds_;
  std::vector<std::int64_t> counts_;  // (owner, asker) of a round
};

}  // namespace zi
