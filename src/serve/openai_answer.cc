#include "serve/openai_answer.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

namespace zi {

OpenAiAnswer::OpenAiAnswer(std::shared_ptr<HttpReply> reply,
                           std::shared_ptr<const ServedModel> model, AnswerShape shape,
                           const std::vector<Prompt>& prompts)
    : reply_(std::move(reply)),
      model_(std::move(model)),
      shape_(std::move(shape)),
      choices_(prompts.size() * shape_.choices),
      first_said_(choices_.size()),
      unfinished_(choices_.size()) {
  for (const Prompt& prompt : prompts) {
    prompt_ids_.push_back(*prompt.ids);
    cached_tokens_.push_back(std::ssize(prompt_ids_.back()));
  }
}

const char* OpenAiAnswer::finish_reason(const Result& result) {
  return result.finish_reason == "eos" || result.finish_reason == "stop" ? "stop" : "length";
}

Json OpenAiAnswer::head() const {
  Json object;
  object["id"] = shape_.id;
  object["object"] = object_name();
  object["created"] = shape_.created;
  object["model"] = shape_.model;
  object["system_fingerprint"] = "zero-infer-" ZI_VERSION;
  return object;
}

Json OpenAiAnswer::usage() const {
  std::int64_t prompt_tokens = 0;
  for (const auto& ids : prompt_ids_) prompt_tokens += std::ssize(ids);
  Json usage;
  usage["prompt_tokens"] = prompt_tokens;
  usage["completion_tokens"] = new_tokens_;
  usage["total_tokens"] = prompt_tokens + new_tokens_;
  usage["prompt_tokens_details"]["cached_tokens"] =
      std::accumulate(cached_tokens_.begin(), cached_tokens_.end(), std::int64_t{0});
  return usage;
}

std::string OpenAiAnswer::begin() const {
  std::string text = dump(head());
  text.back() = ',';
  return text += "\"choices\":[";
}

void OpenAiAnswer::accepted() {
  if (shape_.stream) begin_stream();
}

void OpenAiAnswer::begin_stream() {
  std::call_once(begun_, [this] {
    HttpResponse response;
    response.content_type = "text/event-stream; charset=utf-8";
    // Neither a cache nor a proxy may hold events back.
    response.headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}};
    response.filler = ": keep-alive\n\n";  // a comment
    reply_->begin_stream(std::move(response));
  });
}

void OpenAiAnswer::send_event(std::string_view data) {
  begin_stream();
  std::string event;
  event.reserve(data.size() + 8);
  reply_->write(event.append("data: ").append(data).append("\n\n"));
}

void OpenAiAnswer::send_choice(Json choice) {
  if (choice.is_null()) return;
  if (chunk_begin_.empty()) chunk_begin_ = begin();
  send_event(chunk_begin_ + dump(choice) + (shape_.include_usage ? "],\"usage\":null}" : "]}"));
}

void OpenAiAnswer::started(std::size_t number) {
  if (!shape_.stream || first_said_[number]) return;
  first_said_[number] = true;
  send_choice(first_piece(number));
}

void OpenAiAnswer::told(std::size_t number, const Delta& delta) {
  started(number);
  send_choice(piece(number, delta));
}

void OpenAiAnswer::finished(std::size_t number, Result result) {
  new_tokens_ += std::ssize(result.token_ids);
  std::int64_t& cached = cached_tokens_[number / shape_.choices];
  cached = std::min(cached, result.cached_tokens);
  --unfinished_;
  if (shape_.stream) {
    started(number);
    send_choice(last_piece(number, result));
    if (unfinished_ == 0) end_stream();
    return;
  }
  choices_[number] = dump(choice(number, result));  // as text, which takes the least memory
  if (unfinished_ > 0) return;
  HttpResponse response;
  response.body = begin();
  for (std::string& one : choices_) {
    response.body += std::exchange(one, {});
    response.body += ',';
  }
  response.body.back() = ']';
  response.body += ",\"usage\":" + dump(usage()) + "}";
  reply_->send(std::move(response));
}

void OpenAiAnswer::end_stream() {
  if (shape_.include_usage) {
    Json chunk = head();
    chunk["choices"] = Json::array();
    chunk["usage"] = usage();
    send_event(dump(chunk));
  }
  send_event("[DONE]");
  reply_->end();
}

void OpenAiAnswer::failed(const ApiError& error) {
  if (!shape_.stream) {
    reply_->send(error.response());
    return;
  }
  send_event(error.to_json());
  reply_->end();
}

}  // namespace zi
