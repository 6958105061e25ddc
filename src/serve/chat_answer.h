#pragma once

#include <cstddef>

#include "serve/openai_answer.h"

namespace zi {

/// Answers POST /v1/chat/completions.
class ChatAnswer final : public OpenAiAnswer {
 public:
  ChatAnswer(std::shared_ptr<HttpReply> reply, std::shared_ptr<const ServedModel> model,
             GenerationRequest request);

 protected:
  const char* object_name() const override;
  Json choice(std::size_t number, Result& result) override;
  Json first_piece(std::size_t number) override;
  Json piece(std::size_t number, const Delta& delta) override;
  Json last_piece(std::size_t number, const Result& result) override;

 private:
  Json logprobs(const std::vector<TokenLogprob>& logprobs) const;
};

}  // namespace zi
