#include "text/prompt_line.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/printable_text.h"
#include "base/suggestion.h"
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

const std::vector<std::string> kKeys = {
    "id", "prompt", "prompt_ids", "messages", "max_new_tokens", "tools", "chat_template_kwargs"};

/// Keys that other programs read in such a line, and what to do here.
struct ForeignKey {
  std::string_view key;
  std::string_view advice;
};
constexpr std::string_view kWriteMost = "write `max_new_tokens`";
constexpr std::string_view kToTemplate = "put it into `chat_template_kwargs`";
constexpr std::string_view kNoSetting = "there is no such setting";
constexpr ForeignKey kForeign[] = {
    {"max_tokens", kWriteMost},
    {"max_completion_tokens", kWriteMost},
    {"max_output_tokens", kWriteMost},
    {"max_length", kWriteMost},
    {"n_predict", kWriteMost},
    {"add_generation_prompt", kToTemplate},
    {"enable_thinking", kToTemplate},
    {"documents", kToTemplate},
    {"tool_choice", kToTemplate},
    {"continue_final_message", kNoSetting},
    {"chat_template", "the checkpoint's own template counts (chat_template.jinja there)"},
    {"system", "put it into `messages`, with the role `system`"},
    {"temperature", "give --temperature, for all prompts"},
    {"top_p", "give --top-p, for all prompts"},
    {"top_k", "give --top-k, for all prompts"},
    {"repetition_penalty", "give --repetition-penalty, for all prompts"},
    {"seed", "give --seed, for all prompts"},
    {"stop", "give --stop, for all prompts"},
    {"logprobs", "give --logprobs, for all prompts"},
    {"top_logprobs", "give --logprobs, for all prompts"},
    {"min_p", kNoSetting},
    {"frequency_penalty", kNoSetting},
    {"presence_penalty", kNoSetting},
    {"logit_bias", kNoSetting},
    {"response_format", kNoSetting},
    {"do_sample", "give --temperature, for all prompts"},
};

/// Other keys are the user's own, and not looked at; but none that looks like a setting is ignored.
void check_keys(const json& object) {
  constexpr std::size_t kShort = 3;  // `idx` and `uid` are not meant to be `id`
  for (const auto& [key, value] : object.items()) {
    if (std::ranges::find(kKeys, key) != kKeys.end()) continue;
    if (key == "logprobs" && value.is_array()) continue;  // a result that is a prompt again
    const auto foreign = std::ranges::find(kForeign, key, &ForeignKey::key);
    if (foreign != std::end(kForeign)) {
      throw PromptError(fmt::format("{} is no key of a line: {}", in_quotes(key), foreign->advice));
    }
    if (key.size() <= kShort) continue;
    const std::string near = suggestion(key, kKeys);
    if (!near.empty()) {
      throw PromptError(fmt::format("{} is no key of a line{}", in_quotes(key), near));
    }
  }
}

}  // namespace

Prompt parse_prompt_line(std::string_view line, const CheckpointChat* chat) {
  const json object = parse_json_line(line);
  check_keys(object);
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
