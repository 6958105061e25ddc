#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/pass_runner.h"
#include "engine/scheduler.h"
#include "engine/work_exchange.h"
#include "text/tokenizer.h"
#include "zero_infer/dtype.h"
#include "zero_infer/run_config.h"

namespace zi {

/// How sequences are drawn and ended; the same on every rank.
struct GenerationOptions {
  std::int64_t max_new_tokens = 100;
  SampleRow sampling;                 // temperature .. seed; the rest is set for each row
  std::vector<std::int32_t> eos_ids;  // empty with --ignore-eos
  std::vector<std::string> stop;
  std::int64_t logprobs = 0;
  bool score = false;
  bool share_prefixes = true;      // of prompts; off to measure passes: prompts may be alike there
  bool special_tokens = true;      // with what the tokenizer's post-processor adds to a text
  std::int64_t vocabulary = 0;     // valid prompt ids are below this
  std::int64_t max_positions = 0;  // tokens of a sequence at most; 0: the model has no limit
  bool stream_text = false;        // rank 0's sink wants text as it comes

  static GenerationOptions from(const RunConfig& config);
};

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
  void admit(Prompt prompt);
  /// How long a sequence can be, and why.
  struct Room {
    std::int64_t tokens;
    const char* of;    // what holds that many tokens
    const char* what;  // to do for more
  };
  Room room() const;
  /// Its ids. Throws PromptError for a text that does not fit next to the new tokens.
  std::vector<std::int32_t> tokens_of(const Prompt& prompt, const Room& room,
                                      std::int64_t new_tokens) const;
  /// Throws PromptError when it cannot be used.
  std::unique_ptr<Sequence> make_sequence(Prompt prompt) const;
  /// Whether the next pass is the last one of every active sequence, whatever is drawn.
  bool ending() const;
  void run_pass(const WorkExchange::Turn& turn);
  SampleRow sample_row(const Sequence& s, std::int64_t target_row) const;
  void take_token(Sequence& s, std::size_t row);
  void take_score(Sequence& s, std::size_t row);
  void append_text(Sequence& s, const std::string& more);
  void finish(Sequence& s);
  /// Frees the lane of a sequence that ends without a result.
  void fail(Sequence& s);

  PassRunner* runner_;
  WorkExchange* exchange_;
  const Tokenizer* tokenizer_;
  Scheduler scheduler_;
  int rank_;
  GenerationOptions options_;
  std::function<int()> stop_signal_;
  GenerationStats stats_;
  FailedPrompts all_failed_;
  std::string outbox_;

  // Of the pass being run; kept to spare allocations.
  std::vector<std::int32_t> logits_rows_;
  std::vector<SampleRow> samples_;
};

}  // namespace zi
