#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "text/generation_settings.h"
#include "text/settings_record.h"
#include "zero_infer/run_config.h"

namespace zi {

/// How a job's sequences are drawn and ended; the same on every rank.
struct GenerationOptions {
  GenerationSettings settings;        // of prompts that say nothing else
  std::vector<std::int32_t> eos_ids;  // of the model
  bool score = false;                 // prompts are only computed, for their log-likelihood
  bool share_prefixes = true;      // of prompts; off to measure passes: prompts may be alike there
  bool special_tokens = true;      // with what the tokenizer's post-processor adds to a text
  std::int64_t vocabulary = 0;     // valid prompt ids are below this
  std::int64_t max_positions = 0;  // tokens of a sequence at most; 0: the model has no limit
  bool stream_text = false;        // text of every prompt is told as it comes
  /// Named in the `settings` of results, see Engine::model_name; empty: results have none.
  std::string model;

  /// For settings_record.
  RecordedJob recorded() const { return {model, settings, score, special_tokens}; }
  static GenerationOptions from(const RunConfig& config);
};

}  // namespace zi
