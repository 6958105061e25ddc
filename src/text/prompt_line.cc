#include "text/prompt_line.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/printable_text.h"
#include "base/suggestion.h"
#include "text/chat_prompt.h"
#include "text/json_line.h"
#include "text/settings_json.h"
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

const std::vector<std::string>& known_keys() {
  static const std::vector<std::string> keys = [] {
    std::vector<std::string> all = setting_keys();
    for (const char* key :
         {"id", "prompt", "prompt_ids", "messages", "max_new_tokens", "min_new_tokens", "logprobs",
          "prompt_logprobs", "tools", "chat_template_kwargs"}) {
      all.emplace_back(key);
    }
    return all;
  }();
  return keys;
}

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
    {"top_logprobs", "write `logprobs`, a number"},
    {"min_tokens", "write `min_new_tokens`"},
    {"n", "write a line for each sample, with seeds of their own"},
    {"best_of", kNoSetting},
    {"stream", "results are written as they finish"},
    {"response_format", kNoSetting},
    {"do_sample", "write `temperature`; 0 is greedy"},
};

/// Other keys are the user's own, and not looked at; but none that looks like a setting is ignored.
void check_keys(const json& object) {
  constexpr std::size_t kShort = 3;  // `idx` and `uid` are not meant to be `id`
  for (const auto& item : object.items()) {
    const std::string& key = item.key();
    if (std::ranges::find(known_keys(), key) != known_keys().end()) continue;
    const auto foreign = std::ranges::find(kForeign, key, &ForeignKey::key);
    if (foreign != std::end(kForeign)) {
      throw PromptError(fmt::format("{} is no key of a line: {}", in_quotes(key), foreign->advice));
    }
    if (key.size() <= kShort) continue;
    const std::string near = suggestion(key, known_keys());
    if (!near.empty()) {
      throw PromptError(fmt::format("{} is no key of a line{}", in_quotes(key), near));
    }
  }
}

OwnSettings parse_own_settings(const json& object) {
  OwnSettings own;
  read_settings(object, own);
  own.max_new_tokens = read_count(object, "max_new_tokens", 1, kAnyCount);
  own.min_new_tokens = read_count(object, "min_new_tokens", 0, kAnyCount);
  const auto logprobs = [&](const char* key) -> std::optional<int> {
    // A result may be a prompt again: its log-probabilities are a list.
    if (const auto value = object.find(key); value != object.end() && value->is_array()) return {};
    const auto count = read_count(object, key, 0, kMostLogprobs);
    return count ? std::optional(static_cast<int>(*count)) : std::nullopt;
  };
  own.logprobs = logprobs("logprobs");
  own.prompt_logprobs = logprobs("prompt_logprobs");
  return own;
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
  prompt.own = parse_own_settings(object);
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
