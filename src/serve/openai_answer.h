#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "serve/generation_request.h"
#include "serve/http/http_reply.h"
#include "serve/json_output.h"
#include "serve/pending_answer.h"

namespace zi {

/// Answers a request of the OpenAI API: one JSON object, or a stream of server-sent events
/// (`data: {..}`, at the end `data: [DONE]`). What the two APIs call a choice is made by classes
/// that derive from it.
class OpenAiAnswer : public PendingAnswer {
 public:
  /// `prompts`: with ids.
  OpenAiAnswer(std::shared_ptr<HttpReply> reply, std::shared_ptr<const ServedModel> model,
               AnswerShape shape, const std::vector<Prompt>& prompts);

  /// The head of a stream goes out at once, however long its prompts wait: clients and proxies give
  /// up where nothing comes.
  void accepted() override;
  void started(std::size_t number) override;
  void told(std::size_t number, const Delta& delta) override;
  void finished(std::size_t number, Result result) override;
  void failed(const ApiError& error) override;

 protected:
  /// `text_completion`, `chat.completion`, `chat.completion.chunk`.
  virtual const char* object_name() const = 0;
  /// Choice `number` of an answer that is no stream.
  virtual Json choice(std::size_t number, Result& result) = 0;
  /// What a stream says of a choice before its first token; null: nothing.
  virtual Json first_piece(std::size_t /*number*/) { return {}; }
  /// New text of a choice; null where there is nothing to say.
  virtual Json piece(std::size_t number, const Delta& delta) = 0;
  /// The end of a choice in a stream.
  virtual Json last_piece(std::size_t number, const Result& result) = 0;

  const AnswerShape& shape() const { return shape_; }
  const ServedModel& model() const { return *model_; }
  const std::vector<std::int32_t>& prompt_ids(std::size_t number) const {
    return prompt_ids_[number / shape_.choices];
  }
  /// What the API calls a finish_reason.
  static const char* finish_reason(const Result& result);

 private:
  void begin_stream();
  void send_choice(Json choice);
  void send_event(std::string_view data);
  void end_stream();
  /// What all chunks of a stream have in common, and a whole answer too.
  Json head() const;
  /// The same as text, and that choices follow.
  std::string begin() const;
  Json usage() const;

  std::shared_ptr<HttpReply> reply_;
  std::shared_ptr<const ServedModel> model_;
  AnswerShape shape_;
  std::vector<std::vector<std::int32_t>> prompt_ids_;  // of each prompt
  /// Of each prompt, tokens that no choice of it had to compute: what the first one found in pages
  /// of earlier requests, not what the others then had from it.
  std::vector<std::int64_t> cached_tokens_;
  std::vector<std::string> choices_;  // no stream: those that are ready, as JSON
  std::vector<bool> first_said_;
  std::string chunk_begin_;  // begin(), written once: a stream has as many chunks as tokens
  std::size_t unfinished_;
  std::int64_t new_tokens_ = 0;
  std::once_flag begun_;  // of a stream
};

}  // namespace zi
