#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "serve/logprobs_json.h"
#include "serve/openai_answer.h"

namespace zi {

/// Answers POST /v1/completions.
class CompletionAnswer final : public OpenAiAnswer {
 public:
  CompletionAnswer(std::shared_ptr<HttpReply> reply, std::shared_ptr<const ServedModel> model,
                   GenerationRequest request);

 protected:
  const char* object_name() const override { return "text_completion"; }
  Json choice(std::size_t number, Result& result) override;
  Json piece(std::size_t number, const Delta& delta) override;
  Json last_piece(std::size_t number, const Result& result) override;

 private:
  const std::string& prompt_text(std::size_t number) const {
    return prompt_texts_[number / shape().choices];
  }
  Json one(std::size_t number, const std::string& text, Json logprobs, Json finish_reason) const;
  /// The echo of a prompt that was not said yet: its text, and its tokens into `logprobs_`.
  std::string echo(std::size_t number, const std::vector<TokenLogprob>& prompt_logprobs);

  std::vector<std::string> prompt_texts_;
  std::vector<CompletionLogprobs> logprobs_;  // of each choice
  std::vector<bool> echoed_;
};

}  // namespace zi
