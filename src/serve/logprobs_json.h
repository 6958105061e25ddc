#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "serve/json_output.h"
#include "text/result.h"
#include "text/tokenizer.h"

namespace zi {

/// Log-probabilities of tokens as the OpenAI API has them. A token that is a part of a UTF-8
/// character is written `bytes:\xe2\x82`; impossible ones, of which the logarithm is -infinity, get
/// -9999.

/// `token_id:17` where ids are asked for, else the token's text.
std::string token_name(const Tokenizer& tokenizer, std::int32_t id, bool as_id);

/// `logprobs` of completions: lists of tokens, their log-probabilities, the best ones, and where in
/// the text they begin. Keeps the place in the text from one call to the next.
class CompletionLogprobs {
 public:
  CompletionLogprobs(const Tokenizer& tokenizer, bool as_ids)
      : tokenizer_(&tokenizer), as_ids_(as_ids), text_(tokenizer) {}

  /// A prompt's tokens; `logprobs` are those of its second one and the following, each with at
  /// least `top` best ids.
  void add_prompt(std::span<const std::int32_t> ids, std::span<const TokenLogprob> logprobs,
                  int top);
  void add(std::span<const TokenLogprob> logprobs, int top);
  /// What was added since the last call.
  Json take();

 private:
  void add_token(std::int32_t id);

  const Tokenizer* tokenizer_;
  bool as_ids_;
  TextStream text_;
  std::int64_t offset_ = 0;  // characters of the text so far
  Json tokens_ = Json::array();
  Json token_logprobs_ = Json::array();
  Json top_logprobs_ = Json::array();
  Json text_offset_ = Json::array();
};

/// `content` of a chat completion's `logprobs`.
Json chat_logprobs(const Tokenizer& tokenizer, std::span<const TokenLogprob> logprobs, int top,
                   bool as_ids);

/// vLLM's `prompt_logprobs`: null for the first token, then {"id": {"logprob", "rank",
/// "decoded_token"}} of each and of the `top` best ids in its place; no rank where it is not among
/// these.
Json prompt_logprobs(const Tokenizer& tokenizer, std::span<const TokenLogprob> logprobs, int top);

}  // namespace zi
