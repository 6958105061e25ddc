#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace zi {

struct TokenLogprob {
  std::int32_t id = 0;
  float logprob = 0;
  std::vector<std::pair<std::int32_t, float>> top;
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
  std::optional<std::vector<TokenLogprob>> logprobs;  // with --logprobs
  std::optional<std::vector<float>> token_logprobs;   // with --score: of tokens 1.. of the prompt
  double perplexity = 0;                              // with --score

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
