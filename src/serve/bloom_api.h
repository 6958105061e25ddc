#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "serve/http/http_reply.h"
#include "serve/json_output.h"
#include "serve/request_fields.h"
#include "serve/request_queue.h"
#include "serve/served_model.h"

namespace zi {

/// The API of the server of Hugging Face's transformers-bloom-inference
/// (github.com/huggingface/transformers-bloom-inference, inference_server): lists of texts, and
/// answers when all of them are done. Any thread. Its functions throw ApiError.
class BloomApi {
 public:
  /// How many requests each endpoint has had: {"generate_query_id", "tokenize_query_id",
  /// "forward_query_id"}.
  Json query_ids() const;

  /// {"text": [..]} -> {"query_id", "total_time_taken", "token_ids", "attention_mask"}. Texts are
  /// not padded.
  Json tokenize(std::string_view body, const ServedModel& model, UnknownFields& unknown);

  /// What a request has the engine run, and the answer that waits for it.
  struct Run {
    std::vector<Prompt> prompts;
    std::shared_ptr<PendingAnswer> answer;
  };
  /// {"text": [..], settings as for transformers' generate(), "remove_input_from_output"} ->
  /// {"query_id", "total_time_taken", "text", "num_generated_tokens"}.
  Run generate(std::string_view body, std::shared_ptr<HttpReply> reply, const ServedModel& model,
               UnknownFields& unknown);
  /// {"conditioning_text": [..], "response": [..]} -> {"query_id", "total_time_taken", "nll"}: the
  /// mean negative log-likelihood of all tokens of the responses, each behind its text.
  Run forward(std::string_view body, std::shared_ptr<HttpReply> reply, const ServedModel& model,
              UnknownFields& unknown);

 private:
  std::atomic<std::int64_t> generate_id_{0};
  std::atomic<std::int64_t> tokenize_id_{0};
  std::atomic<std::int64_t> forward_id_{0};
};

}  // namespace zi
