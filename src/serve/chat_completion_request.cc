#include "serve/chat_completion_request.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "serve/api_error.h"
#include "text/chat_messages.h"
#include "text/chat_prompt.h"
#include "text/settings_json.h"

namespace zi {
namespace {

using nlohmann::json;

constexpr int kMostChatTops = 20;  // as the OpenAI API has it

/// Whether the template may show the tools to the model.
bool tools_shown(const json& object) {
  const json* const choice = find_field(object, "tool_choice");
  if (choice == nullptr || *choice == "auto") return true;
  if (*choice == "none") return false;
  throw ApiError::bad_field(
      "`tool_choice` is neither \"auto\" nor \"none\": a call of a tool cannot be forced",
      "tool_choice");
}

Prompt read_messages(std::string_view body, const json& object, const ServedModel& model) {
  if (!read_flag(object, "add_generation_prompt", true)) {
    throw ApiError::bad_field("`add_generation_prompt` is always true here",
                              "add_generation_prompt");
  }
  if (find_field(object, "messages") == nullptr) {
    throw ApiError::bad_field("no `messages`", "messages");
  }
  ChatRequest request = parse_chat_line(body);
  require_contents(request.messages);
  if (!tools_shown(object)) request.tools = chat::None{};
  Prompt prompt;
  try {
    set_chat(prompt, request, model.chat());
  } catch (const CheckpointError& error) {
    throw ApiError(400, error.what(), {.param = "messages", .code = "no_chat_template"});
  } catch (const PromptError& error) {
    throw ApiError::bad_field(error.what(), "messages");
  }
  return prompt;
}

}  // namespace

GenerationRequest read_chat_completion_request(std::string_view body, const ServedModel& model,
                                               UnknownFields& unknown) {
  static const std::vector<std::string> known = with_common_keys(
      {"messages", "tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs",
       "add_generation_prompt", "max_completion_tokens", "top_logprobs"});
  const json object = parse_body(body);
  unknown.note(object, known, "/v1/chat/completions");
  GenerationRequest request;
  AnswerShape& shape = request.shape;
  shape.id = new_answer_id("chatcmpl");
  Prompt prompt = with_members([&] {
    OwnSettings own;
    read_common_fields(object, model, shape, own);
    check_count(1, shape.choices, model);
    const auto older = read_count(object, "max_tokens", 1, kAnyCount);
    const auto newer = read_count(object, "max_completion_tokens", 1, kAnyCount);
    own.max_new_tokens = newer ? newer : older;
    const std::optional<int> top = read_int(object, "top_logprobs", kMostChatTops);
    if (read_flag(object, "logprobs", false)) {
      shape.logprobs = top.value_or(0);
    } else if (top) {
      throw ApiError::bad_field("`top_logprobs` need `logprobs`: true", "top_logprobs");
    }
    Prompt made = read_messages(body, object, model);
    made.own = std::move(own);
    return made;
  });
  prompt.own.logprobs = shape.logprobs;
  prompt.stream = shape.stream;
  prompt.where = shape.id;
  CheckedPrompt checked = check_prompt(
      std::move(prompt), model.defaults().max_new_tokens.value_or(kAsManyAsFit), model, "messages");
  set_seed(checked.prompt, model);
  request.prompts.push_back(std::move(checked.prompt));
  request.prompt_texts.push_back(std::move(checked.text));
  check_logprobs(request, model);
  return request;
}

}  // namespace zi
