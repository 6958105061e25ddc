#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/embedding_rows.h"
#include "engine/exchange_ops.h"
#include "engine/host_shares.h"
#include "engine/memory_plan.h"
#include "engine/model_weights.h"
#include "engine/pass_inputs.h"
#include "engine/pass_timer.h"
#include "engine/pass_times.h"
#include "engine/row_exchange.h"
#include "engine/scheduler.h"
#include "engine/split_ops.h"
#include "engine/vocabulary_head.h"
#include "offload/layer_fetcher.h"
#include "zero_infer/backend.h"
#include "zero_infer/communicator.h"
#include "zero_infer/device.h"
#include "zero_infer/model.h"
#include "zero_infer/ops.h"
#include "zero_infer/recent_map.h"

namespace zi {

/// Runs passes on one rank: owns the streams, the slots (through the fetcher), the KV cache and the
/// workspace, and strings embedding, blocks, head and sampling together.
class PassRunner {
 public:
  /// Pinned bytes for what a pass samples: ids and log-probabilities of its rows, and of the `top`
  /// best of each.
  static std::size_t results_bytes(std::int64_t pass_tokens);

  /// Everything that a pass is about. `most_logits_rows` is the largest count of any rank, so that
  /// all take part in the same exchanges; an idle rank has no chunks.
  struct Request {
    std::span<const Chunk> chunks;
    /// (world, most): the token ids of the rows of each rank of the partition, this rank's being
    /// those of its chunks, filled up with kNoId; the same on every rank.
    std::span<const std::int32_t> ids;
    std::span<const std::int32_t> logits_rows;  // rows of the pass, ascending, each once
    std::span<const SampleRow> samples;         // one for each of them
    std::int64_t most_logits_rows = 0;
    bool last = false;  // on every rank alike: no pass follows, nothing is fetched ahead
  };

  /// What a runner works with; all of it outlives the runner.
  struct Parts {
    Device& device;
    Ops& ops;
    Communicator* communicator;     // null for a partition of one
    PeerExchange* peers = nullptr;  // of plan.product_exchange bytes; null: there are none
    Model& model;
    const ModelWeights& weights;
    const MemoryPlan& plan;
    int rank;
    int world;
    std::int64_t vocabulary;  // of the model: a score's log-probability is over all of its ids
    std::int64_t drawable;    // ids from this one on are never drawn
    /// Where the plan lets weights stay: the largest row count of any rank for which they do.
    std::int64_t stay_rows = 0;
    /// Where the plan splits products: who multiplies the host's part, and how large it is.
    HostProducts* host_products = nullptr;
    HostShares host_shares = {};
  };
  /// `slots`: memory of the communicator for plan.slots, else the device's is taken.
  explicit PassRunner(const Parts& parts, Buffer slots = {});

  /// Collective. Runs one pass and waits for its samples; `results` has a row for each of
  /// `samples`, with kNoId where the logits were not finite.
  void run(const Request& request);
  const SampleResults& results() const { return results_; }

  /// Replaces Parts::stay_rows, from the next pass on.
  void leave_weights_up_to(std::int64_t rows) { stay_rows_ = rows; }

  /// Replaces Parts::host_shares, from the next pass on.
  void share_with_host(HostShares shares) { host_shares_ = std::move(shares); }

  /// What moved since the last call; over the network, all that came from other hosts, with what
  /// was exchanged.
  FetchStats take_fetch_stats();
  /// Bytes that moved over each link since the last calls of take_fetch_stats and take_exchanged.
  PerLink<std::uint64_t> moved() const;
  /// What it received for products with weights that stay, since the last call.
  Exchanged take_exchanged();

  /// From the next pass on, `observer` is called for each pass, while the one after it runs or when
  /// `observe` is called again; empty: for none. This records some events, and marks ranges of the
  /// host's work for profilers.
  void observe(PassObserver observer);

 private:
  /// What fixes every launch of a decoding pass in which nothing is fetched: this rank's sequences,
  /// their max_pages and logits rows; the most rows and the most logits rows of any rank; and
  /// whether weights stay.
  using Shape = std::tuple<std::size_t, int, std::size_t, std::int64_t, std::int64_t, bool>;
  /// Such a pass, but for the look-up of embedding rows and its samples.
  struct RecordedPass {
    std::unique_ptr<Graph> graph;  // null: seen once
    Exchanged exchanged;           // each time
  };

  void allocate_results();
  void enqueue(const Request& request);
  void look_up_embedding();
  void embed();
  void run_blocks(const Request& request);
  bool runs_blocks(const Request& request) const;
  /// The largest row count of any rank.
  std::int64_t most_rows(const Request& request) const;
  /// The host's share of products in the pass that runs.
  double host_share() const;
  void run_block(int unit, const UnitWeights& weights);
  void run_head(const Request& request);
  void sample(const Request& request, const float* logits, std::int64_t begin, std::int64_t count);
  /// Whether a graph can hold this pass.
  bool recordable(const Request& request) const;
  /// The passes of this shape, recorded when it comes for the second time; else null.
  const RecordedPass* recorded_pass(const Request& request);
  /// Null, with a warning, where the device cannot: passes then run as always.
  std::unique_ptr<Graph> record(const std::function<void()>& work);

  std::uint64_t network_bytes() const {
    return communicator_ == nullptr ? 0 : communicator_->network_bytes();
  }

  Device* device_;
  Ops* ops_;
  Communicator* communicator_;
  Model* model_;
  const ModelWeights* weights_;
  const MemoryPlan* plan_;
  std::int64_t vocabulary_;
  std::int64_t drawable_;
  int world_;
  std::int64_t stay_rows_;
  HostShares host_shares_;

  // Memory before streams: a stream's destructor waits for the work that uses the memory.
  Buffer kv_;
  Buffer workspace_;
  Buffer head_workspace_;
  Buffer product_exchange_;  // none where peers have it
  Buffer results_memory_;
  SampleResults results_;
  PassInputs inputs_;
  std::unique_ptr<Stream> compute_;
  std::unique_ptr<Stream> exchange_;
  std::unique_ptr<EmbeddingRows> embedding_;
  std::unique_ptr<RowExchange> row_exchange_;  // null in a world of one
  std::unique_ptr<SplitOps> split_ops_;        // null: the host has no share of products
  std::unique_ptr<ExchangeOps> exchange_ops_;  // null: no pass leaves weights where they are
  std::unique_ptr<VocabularyHead> head_;
  std::unique_ptr<LayerFetcher> fetcher_;
  std::int64_t most_rows_ = 0;  // of any rank, in the pass that runs
  bool stays_ = false;          // weights do
  Exchanged exchanged_;
  std::uint64_t network_taken_ = 0;   // bytes, at the last take_fetch_stats
  std::uint64_t network_passed_ = 0;  // at the end of the last pass
  /// Graphs kept at once: some hundred launches each.
  static constexpr std::size_t kMostGraphs = 64;
  RecentMap<Shape, RecordedPass> graphs_{kMostGraphs};
  bool graphs_failed_ = false;
  std::vector<RowBlockMatrix> matrices_;
  std::optional<PassTimer> timer_;  // there once the fetcher is
};

}  // namespace zi
