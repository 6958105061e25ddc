#include "serve/completion_answer.h"

#include <utility>

namespace zi {

CompletionAnswer::CompletionAnswer(std::shared_ptr<HttpReply> reply,
                                   std::shared_ptr<const ServedModel> model,
                                   GenerationRequest request)
    : OpenAiAnswer(std::move(reply), std::move(model), std::move(request.shape), request.prompts),
      prompt_texts_(std::move(request.prompt_texts)),
      echoed_(prompt_texts_.size() * shape().choices) {
  for (std::size_t i = 0; i < echoed_.size(); ++i) {
    logprobs_.emplace_back(this->model().tokenizer(), shape().tokens_as_ids);
  }
}

Json CompletionAnswer::one(std::size_t number, const std::string& text, Json logprobs,
                           Json finish_reason) const {
  Json choice;
  choice["index"] = number;
  choice["text"] = text;
  choice["logprobs"] = std::move(logprobs);
  choice["finish_reason"] = std::move(finish_reason);
  return choice;
}

std::string CompletionAnswer::echo(std::size_t number,
                                   const std::vector<TokenLogprob>& prompt_logprobs) {
  if (!shape().echo || echoed_[number]) return {};
  echoed_[number] = true;
  if (shape().logprobs) {
    logprobs_[number].add_prompt(prompt_ids(number), prompt_logprobs, *shape().logprobs);
  }
  return prompt_text(number);
}

Json CompletionAnswer::choice(std::size_t number, Result& result) {
  const std::vector<TokenLogprob> of_prompt =
      std::move(result.prompt_logprobs).value_or(std::vector<TokenLogprob>());
  std::string text = echo(number, of_prompt);
  text += result.text;
  Json logprobs;
  if (shape().logprobs) {
    if (result.logprobs) logprobs_[number].add(*result.logprobs, *shape().logprobs);
    logprobs = logprobs_[number].take();
  }
  Json made = one(number, text, std::move(logprobs), finish_reason(result));
  if (shape().prompt_logprobs) {
    made["prompt_logprobs"] =
        prompt_logprobs(model().tokenizer(), of_prompt, *shape().prompt_logprobs);
  }
  return made;
}

Json CompletionAnswer::piece(std::size_t number, const Delta& delta) {
  const std::string text = echo(number, delta.prompt_logprobs) + delta.text;
  Json logprobs;
  if (shape().logprobs) {
    logprobs_[number].add(delta.logprobs, *shape().logprobs);
    logprobs = logprobs_[number].take();
    if (text.empty() && logprobs["tokens"].empty()) return {};
  } else if (text.empty()) {
    return {};
  }
  return one(number, text, std::move(logprobs), nullptr);
}

Json CompletionAnswer::last_piece(std::size_t number, const Result& result) {
  // Its text has been told, unless there was no token to tell of.
  const std::string text =
      echo(number, result.prompt_logprobs.value_or(std::vector<TokenLogprob>()));
  Json logprobs;
  if (shape().logprobs && !text.empty()) logprobs = logprobs_[number].take();
  return one(number, text, std::move(logprobs), finish_reason(result));
}

}  // namespace zi
