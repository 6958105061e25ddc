#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/admission.h"
#include "engine/generation_options.h"
#include "engine/pass_runner.h"
#include "engine/scheduler.h"
#include "engine/work_exchange.h"
#include "text/tokenizer.h"
#include "zero_infer/dtype.h"

namespace zi {

/// What to do when a model gives NaN or infinity at products of this type.
std::string advice_for_not_finite(DType compute_dtype);

/// What a rank did.
struct GenerationStats {
  std::int64_t passes = 0;         // of the whole job: every rank counts the same ones
  std::int64_t prompt_rows = 0;    // rows that were prompt tokens, recomputed ones included
  std::int64_t cached_tokens = 0;  // prompt tokens taken from shared pages instead
  std::int64_t new_tokens = 0;
  std::int64_t sequences = 0;
  FailedPrompts failed;
  std::int64_t preemptions = 0;
  std::int64_t cancelled = 0;
  double seconds = 0;       // at work
  double idle_seconds = 0;  // no rank had a prompt: a slow pipe
};

/// One rank's stream of sequences: takes prompts, runs passes until no rank has work, hands results
/// on.
class Generator {
 public:
  /// `stop_signal` is asked once a pass: 0 or the signal to leave for.
  Generator(PassRunner& runner, WorkExchange& exchange, const Tokenizer& tokenizer,
            const MemoryPlan& plan, std::int64_t lanes, int rank, GenerationOptions options,
            std::function<int()> stop_signal);

  /// Collective. Returns when all sequences of all ranks are finished or a signal came; the signal
  /// or 0.
  int run();
  const GenerationStats& stats() const { return stats_; }
  /// Of all ranks; valid after `run`.
  const FailedPrompts& failed_prompts() const { return all_failed_; }

 private:
  RankStatus status() const;
  void admit(Prompt prompt);
  /// Frees the lane of a sequence whose result nobody wants any more.
  void cancel(std::uint64_t index);
  /// Whether the next pass is the last one of every active sequence, whatever is drawn.
  bool ending() const;
  /// Adds a chunk to the pass that is being made.
  void add_rows(const Chunk& chunk);
  void run_pass(const WorkExchange::Turn& turn);
  SampleRow sample_row(const Sequence& s, std::int64_t target_row) const;
  void take_token(Sequence& s, std::size_t row);
  void take_score(Sequence& s, std::size_t row);
  /// The log-probabilities of a row of results, with `top` of its best ids.
  TokenLogprob logprob_of(std::int32_t id, std::size_t row, int top) const;
  /// Tells what is new of a sequence whose tokens are told as they come.
  void tell(Sequence& s);
  void finish(Sequence& s);
  /// Frees the lane of a sequence that ends without a result.
  void fail(Sequence& s);

  PassRunner* runner_;
  WorkExchange* exchange_;
  Scheduler scheduler_;
  int rank_;
  GenerationOptions options_;
  Admission admission_;
  std::function<int()> stop_signal_;
  GenerationStats stats_;
  FailedPrompts all_failed_;
  std::string outbox_;

  // Of the pass being run; kept to spare allocations.
  std::vector<std::int32_t> ids_;
  std::vector<std::int32_t> logits_rows_;
  std::vector<SampleRow> samples_;
  std::vector<Sequence*> owners_;  // of the samples
};

}  // namespace zi
