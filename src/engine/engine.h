#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "engine/admission.h"
#include "engine/agreement.h"
#include "engine/backend_choice.h"
#include "engine/generation_options.h"
#include "engine/generator.h"
#include "engine/host_shares.h"
#include "engine/memory_plan.h"
#include "engine/memory_planner.h"
#include "engine/model_weights.h"
#include "engine/open_model.h"
#include "engine/output.h"
#include "engine/pass_runner.h"
#include "text/prompt_source.h"
#include "text/tokenizer.h"
#include "zero_infer/backend.h"
#include "zero_infer/run_config.h"
#include "zero_infer/world.h"

namespace zi {

/// A model that is loaded and ready to generate, on all ranks of a world. Every public call is
/// collective. Prompts, results and stopping are the world's; weights, and all that a pass
/// exchanges, are the partition's, of which the world has one or several.
class Engine {
 public:
  /// Called on every rank when the model is open and the memory planned, before any of it is taken:
  /// of the engine, what the config, the plan, the tokenizer and the model say can be asked. It may
  /// be collective, and ends the engine by throwing on every rank.
  using BeforeLoad = std::function<void(const Engine& engine)>;

  /// Resolves the model, plans the memory, loads. A failure on any rank leaves all of them, with
  /// one message. `observer` is told how this rank's loading goes.
  Engine(World& world, std::shared_ptr<Backend> backend, RunConfig config,
         LoadObserver observer = {}, const BeforeLoad& before_load = {});
  Engine(World& world, Backend backend, RunConfig config);
  ~Engine();

  /// What a generation needs on rank 0; elsewhere both may be null.
  struct Job {
    PromptSource* source = nullptr;
    OutputSink* sink = nullptr;
    std::int64_t lanes = 1;  // up to the plan's
    GenerationOptions options;
    /// Prompts are taken before there is a lane for them, to cut their texts into tokens while
    /// passes run. Not for a source that cancels prompts, such as a server's queue.
    bool encode_ahead = false;
    std::function<int()> stop_signal = [] { return 0; };
    PassObserver on_pass = {};  // called for each pass of this rank
  };
  struct Outcome {
    int signal = 0;
    FailedPrompts failed;   // of all ranks
    GenerationStats stats;  // of this rank
    FetchStats fetched;     // of this rank
    Exchanged exchanged;    // by this rank
  };
  Outcome generate(const Job& job);

  /// With --travel auto, on every rank alike: weights stay in passes of up to so many rows a rank,
  /// whatever was measured. For comparisons of both ways.
  void leave_weights_up_to(std::int64_t rows);

  /// Where the plan splits products, and for this rank alone: the host has these shares, whatever
  /// was measured. For comparisons.
  void share_with_host(HostShares shares);

  /// Gives back what passes need in addition to the weights, for measurements between jobs.
  void end_passes() {
    runner_.reset();
    peers_.reset();
  }
  /// Collective. Takes it again: the engine can generate.
  void begin_passes();

  const RunConfig& config() const { return config_; }
  const MemoryPlan& plan() const { return *plan_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const Model& model() const { return *open_.model; }
  const Backend& backend() const { return *backend_; }
  /// The ranks that hold a copy of the weights together, by which plan and weights number them.
  RankGroup& partition() const { return *backend_->partition; }
  const ModelWeights& weights() const { return *weights_; }
  /// Of this rank's host, as given or measured.
  const HostShares& host_shares() const { return *host_shares_; }
  double load_seconds() const { return weights_->load_seconds(); }
  /// `io_uring + O_DIRECT`; empty without an NVMe tier.
  std::string nvme_method() const;
  /// The model by the last part of its path and a hash of what makes its results: `NAME@HASH`, with
  /// the formats that weights are packed in while loading. Equal for equal weights, config and
  /// tokenizer, wherever they are. The first call may read, see WeightSource::content_identity.
  std::string model_name() const;
  /// Where the model's files are.
  const std::filesystem::path& directory() const { return open_.directory; }
  /// The options of the config with the model's ids.
  GenerationOptions generation_options() const;
  /// What can be run with these options on any rank.
  Admission admission(GenerationOptions options) const;

 private:
  void open();
  /// Says what of the checkpoint is loaded in another format.
  void log_conversions() const;
  void make_memory_plan();
  /// Collective. Everything, into the memory of the plan.
  void load(const BeforeLoad& before_load);
  /// Collective. Refuses what is there in place of a shard file, and disks without room.
  void check_shard_file(const LoadOptions& options);
  /// Collective. Where partitions differ in ranks, and with them in memory: as many pages of the KV
  /// cache as the one with the fewest has, so that a prompt is refused by all or none.
  void equalize_kv_pages(const PlanInput& input);
  Buffer allocate_slots();
  void make_runner(Buffer slots);
  /// Collective. The largest row count of any rank for which weights stay.
  std::int64_t measure_stay_rows(Buffer& slots);
  /// Makes them once, and decides about their share.
  void prepare_host_products(Buffer& slots);
  /// What must be the same on every rank, or the job would hang or give nonsense.
  std::vector<Agreed> agreement() const;
  /// The same of the ranks of a partition.
  std::vector<Agreed> plan_agreement() const;

  World* world_;
  std::shared_ptr<Backend> backend_;
  RunConfig config_;
  LoadObserver observer_;
  OpenModel open_;
  std::optional<Tokenizer> tokenizer_;
  std::optional<MemoryPlan> plan_;
  std::unique_ptr<ModelWeights> weights_;
  std::optional<std::int64_t> stay_rows_;
  std::unique_ptr<HostProducts> host_products_;  // null: the host has no share of products
  std::optional<HostShares> host_shares_;
  std::unique_ptr<PeerExchange> peers_;  // null: ranks exchange by the communicator alone
  std::unique_ptr<PassRunner> runner_;
};

}  // namespace zi
