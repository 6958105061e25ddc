#include "serve/chat_answer.h"

#include <utility>

#include "serve/logprobs_json.h"

namespace zi {
namespace {

Json chunk(std::size_t number, Json delta, Json logprobs, Json finish_reason) {
  Json choice;
  choice["index"] = number;
  choice["delta"] = std::move(delta);
  choice["logprobs"] = std::move(logprobs);
  choice["finish_reason"] = std::move(finish_reason);
  return choice;
}

}  // namespace

ChatAnswer::ChatAnswer(std::shared_ptr<HttpReply> reply, std::shared_ptr<const ServedModel> model,
                       GenerationRequest request)
    : OpenAiAnswer(std::move(reply), std::move(model), std::move(request.shape), request.prompts) {}

const char* ChatAnswer::object_name() const {
  return shape().stream ? "chat.completion.chunk" : "chat.completion";
}

Json ChatAnswer::logprobs(const std::vector<TokenLogprob>& logprobs) const {
  return chat_logprobs(model().tokenizer(), logprobs, *shape().logprobs, shape().tokens_as_ids);
}

Json ChatAnswer::choice(std::size_t number, Result& result) {
  Json message;
  message["role"] = "assistant";
  message["content"] = std::move(result.text);
  Json made;
  made["index"] = number;
  made["message"] = std::move(message);
  made["logprobs"] = shape().logprobs && result.logprobs ? logprobs(*result.logprobs) : Json();
  made["finish_reason"] = finish_reason(result);
  if (shape().prompt_logprobs && result.prompt_logprobs) {
    made["prompt_logprobs"] =
        prompt_logprobs(model().tokenizer(), *result.prompt_logprobs, *shape().prompt_logprobs);
  }
  return made;
}

Json ChatAnswer::first_piece(std::size_t number) {
  Json delta;
  delta["role"] = "assistant";
  delta["content"] = "";
  return chunk(number, std::move(delta), nullptr, nullptr);
}

Json ChatAnswer::piece(std::size_t number, const Delta& delta) {
  if (delta.text.empty() && delta.logprobs.empty()) return {};
  return chunk(number, Json{{"content", delta.text}},
               shape().logprobs ? logprobs(delta.logprobs) : Json(), nullptr);
}

Json ChatAnswer::last_piece(std::size_t number, const Result& result) {
  return chunk(number, Json::object(), nullptr, finish_reason(result));
}

}  // namespace zi
