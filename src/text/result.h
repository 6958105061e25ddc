#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/wire.h"

namespace zi {

struct TokenLogprob {
  std::int32_t id = 0;
  float logprob = 0;
  std::vector<std::pair<std::int32_t, float>> top;

  void write(WireWriter& out) const;
  static TokenLogprob read(WireReader& in);
};

/// What a running sequence has got since it was last told of.
struct Delta {
  std::string text;  // whole characters, and never a part of what may become a stop text
  std::int64_t new_tokens = 0;
  std::vector<TokenLogprob> logprobs;         // of the new tokens, where they are asked for
  std::vector<TokenLogprob> prompt_logprobs;  // with the first new token, where they are asked for

  std::string serialize() const;
  static Delta deserialize(std::string_view bytes);
};

/// A finished sequence: one line of the output file.
struct Result {
  std::uint64_t index = 0;
  std::string id;  // JSON value as text
  int rank = 0;
  std::string prompt;                                   // the text; for prompt_ids its decoding
  std::optional<std::vector<std::int32_t>> prompt_ids;  // where the prompt was given by them
  std::string chat_hash;  // where it was given as messages: see Prompt
  std::int64_t prompt_tokens = 0;
  std::int64_t cached_tokens = 0;  // of these, taken from shared pages; not in the JSON object
  std::string text;
  std::vector<std::int32_t> token_ids;
  std::string finish_reason;                          // eos | length | stop; empty when scored
  std::optional<std::vector<TokenLogprob>> logprobs;  // of the new tokens, where asked for
  std::optional<std::vector<TokenLogprob>> prompt_logprobs;  // of tokens 1.. of the prompt
  std::optional<std::vector<float>> token_logprobs;  // with --score: of tokens 1.. of the prompt
  double perplexity = 0;                             // with --score
  std::string settings;  // by what it was made: see settings_record; empty: nobody asked for it
  // From when its rank took the prompt; not in the JSON:
  double first_token_seconds = 0;  // to the first new token
  double seconds = 0;              // to its end

  /// Makes the log-probabilities of the prompt the result, in place of generated text.
  void become_score();
  /// The JSON object of the output file, without a newline. Invalid UTF-8 becomes U+FFFD; a
  /// non-finite number becomes null. Scored results have `token_logprobs` and `perplexity` in place
  /// of `text`, `token_ids`, `finish_reason` and `logprobs`.
  std::string to_json() const;
  /// Compact bytes with exact numbers for the trip between ranks, and back (throws Error when
  /// damaged).
  std::string serialize() const;
  static Result deserialize(std::string_view bytes);
};

}  // namespace zi
