#include "text/prompt_line.h"

#include <fmt/format.h>

#include <limits>

#include "text/chat_prompt.h"
#include "text/json_line.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using nlohmann::json;

std::vector<std::int32_t> parse_ids(const json& values) {
  if (!values.is_array()) throw PromptError("`prompt_ids` is not an array of integers");
  std::vector<std::int32_t> ids;
  ids.reserve(values.size());
  constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max();
  for (const json& value : values) {
    if (!value.is_number_integer() || value < 0 || value > kMost) {
      throw PromptError(
          fmt::format("`prompt_ids`[{}] is not an integer from 0 to {}", ids.size(), kMost));
    }
    ids.push_back(value.get<std::int32_t>());
  }
  return ids;
}

std::int64_t parse_max_new_tokens(const json& value) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  if (!value.is_number_integer() || value < 1 || value > kMost) {
    throw PromptError("`max_new_tokens` is not an integer of at least 1");
  }
  return value.get<std::int64_t>();
}

}  // namespace

Prompt parse_prompt_line(std::string_view line, const CheckpointChat* chat) {
  const json object = parse_json_line(line);
  Prompt prompt;
  prompt.id = id_of(object);
  const auto text = object.find("prompt");
  const auto ids = object.find("prompt_ids");
  const bool messages = object.contains("messages");
  if (int{text != object.end()} + int{ids != object.end()} + int{messages} > 1) {
    throw PromptError("more than one of `prompt`, `prompt_ids` and `messages`; give one of them");
  }
  if (const auto most = object.find("max_new_tokens"); most != object.end()) {
    prompt.max_new_tokens = parse_max_new_tokens(*most);
  }
  if (messages) {
    const ChatRequest request = parse_chat_line(line);
    if (chat == nullptr) throw PromptError("`messages` need a model with a chat template");
    set_chat(prompt, request, *chat);
  } else if (text != object.end()) {
    if (!text->is_string()) throw PromptError("`prompt` is not a string");
    prompt.text = text->get<std::string>();
  } else if (ids != object.end()) {
    prompt.ids = parse_ids(*ids);
  } else {
    throw PromptError("none of `prompt`, `prompt_ids` and `messages`");
  }
  if (prompt.text ? prompt.text->empty() : prompt.ids->empty()) throw PromptError("empty prompt");
  return prompt;
}

}  // namespace zi
