#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/kv_pages.h"
#include "text/prompt.h"
#include "text/result.h"
#include "text/tokenizer.h"

namespace zi {

/// A prompt and the tokens generated for it; lives on one rank, in one lane.
struct Sequence {
  Sequence(Prompt from, const Tokenizer& tokenizer) : prompt(std::move(from)), stream(tokenizer) {}

  Prompt prompt;
  std::string prompt_text;
  std::vector<std::int32_t> tokens;  // the prompt's, then the new ones
  std::int64_t prompt_tokens = 0;
  std::int64_t max_new_tokens = 0;

  /// Whether it may take over keys and values that other sequences computed: not where something
  /// is wanted of every row, such as its log-probability.
  bool may_share = true;

  // The scheduler's.
  std::int64_t computed = 0;         // tokens whose keys and values are in the pages
  std::vector<KvPages::Page> pages;  // of the KV cache, in order of position
  KvPages::Chain known;              // the first of these, or what was found while it has none
  std::int64_t reached = 0;          // the most that `computed` was before a preemption
  std::int64_t cached_tokens = 0;    // of the prompt: taken over instead of being computed
  std::uint64_t order = 0;           // of admission to this rank

  TextStream stream;
  std::string text;  // of the new tokens so far, whole characters
  std::string finish_reason;
  std::vector<TokenLogprob> logprobs;
  std::vector<float> token_logprobs;  // with --score
  bool not_finite = false;            // the model gave NaN or infinity: it ends without a result

  std::int64_t new_tokens() const {
    return static_cast<std::int64_t>(tokens.size()) - prompt_tokens;
  }
};

}  // namespace zi
