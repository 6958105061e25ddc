#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "text/generation_settings.h"
#include "text/prompt.h"
#include "text/result.h"
#include "text/tokenizer.h"
#include "zero_infer/ops.h"

namespace zi {

/// A prompt and the tokens generated for it; lives on one rank, in one lane.
struct Sequence {
  Sequence(Prompt from, const Tokenizer& tokenizer) : prompt(std::move(from)), stream(tokenizer) {}

  Prompt prompt;
  std::string prompt_text;
  std::vector<std::int32_t> tokens;  // the prompt's, then the new ones
  std::int64_t prompt_tokens = 0;
  GenerationSettings settings;
  std::int64_t max_new_tokens = 0;  // of the settings, in numbers
  std::vector<LogitBias> biases;    // of the settings, then those that keep it from ending
  std::size_t own_biases = 0;       // of the settings

  std::int64_t computed = 0;        // tokens whose keys and values are in the pages
  std::vector<std::int32_t> pages;  // of the KV cache, in order of position
  std::uint64_t order = 0;          // of admission to this rank

  TextStream stream;
  std::string text;            // of the new tokens so far, whole characters
  std::size_t stops_from = 0;  // where in it stop texts count
  std::size_t told = 0;        // bytes of it that Deltas have had
  std::string finish_reason;
  std::vector<TokenLogprob> logprobs;
  std::vector<TokenLogprob> prompt_logprobs;
  std::chrono::steady_clock::time_point admitted = std::chrono::steady_clock::now();
  double first_token_seconds = 0;  // from then to its first new token
  Delta delta;                     // since the last take_delta; its text is still in `text`
  bool not_finite = false;         // the model gave NaN or infinity: it ends without a result
  bool nothing_to_draw = false;    // its biases leave no token: nor does it have one then

  std::int64_t new_tokens() const {
    return static_cast<std::int64_t>(tokens.size()) - prompt_tokens;
  }
  /// Whether nothing but the log-probabilities of its prompt is wanted.
  bool only_prompt() const { return max_new_tokens == 0; }

  /// Changes of the next token's logits.
  std::span<const LogitBias> bias() const;

  /// Takes a drawn token with its text. `end_of_text`: it is one that ends a text.
  void take_token(std::int32_t id, bool end_of_text);
  /// What it has got since the last call.
  Delta take_delta();
  /// All of it; it is over.
  Result take_result();

 private:
  void append_text(const std::string& more);
  double seconds_since_admission() const;
  /// Bytes at the end of the text that may be the beginning of a stop text.
  std::size_t held_back() const;
};

}  // namespace zi
