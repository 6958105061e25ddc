#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "serve/request_fields.h"
#include "serve/served_model.h"
#include "text/prompt.h"

namespace zi {

/// How a request of the OpenAI API wants its answer.
struct AnswerShape {
  std::string id{};          // `cmpl-..` or `chatcmpl-..`
  std::int64_t created = 0;  // seconds since 1970
  std::string model{};       // its name
  std::size_t choices = 1;   // of each prompt: choice c of prompt p is number p * choices + c
  bool stream = false;
  bool include_usage = false;            // of a stream: a last chunk has it
  bool echo = false;                     // of a completion: its text begins with the prompt's
  std::optional<int> logprobs{};         // so many best ids of each token
  std::optional<int> prompt_logprobs{};  // the same of the prompt's
  bool tokens_as_ids = false;            // `token_id:17` in log-probabilities
};

/// A request for new text that was read and can be run.
struct GenerationRequest {
  AnswerShape shape;
  std::vector<Prompt> prompts;            // by ids; each stands for as many as it has choices
  std::vector<std::string> prompt_texts;  // of each prompt, for an echo
};

/// Reads what both APIs have in common: the shape of the answer, and what its prompts run with, but
/// for the number of tokens. Throws ApiError 404 for another model, 400 for the rest; PromptError
/// that begins with the member's name.
void read_common_fields(const nlohmann::json& object, const ServedModel& model, AnswerShape& shape,
                        OwnSettings& own);
/// Names of what read_common_fields reads or refuses, and of what both APIs have and changes
/// nothing here, and `more`.
std::vector<std::string> with_common_keys(std::initializer_list<const char*> more);
/// A number of the object from 0 to `most`. Throws PromptError.
std::optional<int> read_int(const nlohmann::json& object, const char* key, std::int64_t most);
/// A name for the answer that no other one has.
std::string new_answer_id(const char* prefix);

/// A prompt by ids, and its text.
struct CheckedPrompt {
  Prompt prompt;
  std::string text;
};
/// The prompt as the engine takes it. Where it does not say how many new tokens it wants, these are
/// `new_tokens` (kAsManyAsFit), or fewer if they do not fit. Throws ApiError 400 naming `param` for
/// what the model cannot take, and `min_tokens` for more of these than there can be.
CheckedPrompt check_prompt(Prompt prompt, std::int64_t new_tokens, const ServedModel& model,
                           const char* param);

/// Before anything is done for them: throws ApiError 400 for more prompts and choices than may
/// wait.
void check_count(std::size_t prompts, std::size_t choices, const ServedModel& model);
/// Gives the prompt its seed: the request's or the server's, which makes the same texts again, else
/// one that no other request has.
void set_seed(Prompt& prompt, const ServedModel& model);
/// Throws ApiError 400 where an answer that is no stream would have more log-probabilities than are
/// kept in memory.
void check_logprobs(const GenerationRequest& request, const ServedModel& model);
/// Throws ApiError 404 where the object names another model.
void check_model(const nlohmann::json& object, const ServedModel& model);

}  // namespace zi
