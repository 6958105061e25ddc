#include "serve/tokenizer_endpoints.h"

#include <fmt/format.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json_file.h"
#include "chat/chat_files.h"
#include "chat/values/json_text.h"
#include "serve/api_error.h"
#include "serve/generation_request.h"
#include "text/chat_messages.h"
#include "text/chat_prompt.h"

namespace zi {
namespace {

constexpr std::size_t kMostConfigBytes = std::size_t{64} << 20;

/// A prompt's text, and whether the tokenizer adds special tokens unless the request says so.
std::pair<std::string, bool> text_of(std::string_view body, const nlohmann::json& object,
                                     const ServedModel& model) {
  if (find_field(object, "messages") == nullptr) return {read_text(object, "prompt"), true};
  Prompt prompt;
  const ChatRequest request = parse_chat_line(body);
  require_contents(request.messages);
  set_chat(prompt, request, model.chat());
  return {std::move(*prompt.text), false};
}

}  // namespace

Json tokenize(std::string_view body, const ServedModel& model, UnknownFields& unknown) {
  static const std::vector<std::string> known = {"model",
                                                 "prompt",
                                                 "messages",
                                                 "tools",
                                                 "chat_template_kwargs",
                                                 "add_special_tokens",
                                                 "return_token_strs",
                                                 "add_generation_prompt"};
  const nlohmann::json object = parse_body(body);
  unknown.note(object, known, "/tokenize");
  check_model(object, model);
  std::vector<std::int32_t> ids;
  try {
    const auto [text, special_tokens] = text_of(body, object, model);
    ids = model.tokenizer().encode(text, read_flag(object, "add_special_tokens", special_tokens));
  } catch (const PromptError& error) {
    throw ApiError::bad_request(error.what());
  } catch (const CheckpointError& error) {
    throw ApiError(400, error.what(), {.param = "messages", .code = "no_chat_template"});
  }
  Json answer;
  answer["count"] = ids.size();
  answer["max_model_len"] = model.room();
  answer["tokens"] = ids;
  answer["token_strs"] = nullptr;
  if (read_flag(object, "return_token_strs", false)) {
    answer["token_strs"] = Json::array();
    for (const std::int32_t id : ids) {
      answer["token_strs"].push_back(model.tokenizer().token_text(id));
    }
  }
  return answer;
}

Json detokenize(std::string_view body, const ServedModel& model, UnknownFields& unknown) {
  static const std::vector<std::string> known = {"model", "tokens"};
  const nlohmann::json object = parse_body(body);
  unknown.note(object, known, "/detokenize");
  check_model(object, model);
  const nlohmann::json* const tokens = find_field(object, "tokens");
  if (tokens == nullptr) throw ApiError::bad_field("no `tokens`", "tokens");
  const std::vector<std::int32_t> ids = read_ids(*tokens, "tokens");
  for (const std::int32_t id : ids) {
    if (id < model.options().vocabulary) continue;
    throw ApiError::bad_field(fmt::format("token id {} is out of range: the model has ids 0 to {}",
                                          id, model.options().vocabulary - 1),
                              "tokens");
  }
  // With special tokens, so that tokenizing the text gives the tokens again.
  return Json{{"prompt", model.tokenizer().decode(ids, true)}};
}

Json tokenizer_info(const ServedModel& model) {
  Json info = Json::object();
  const std::filesystem::path file = model.directory() / "tokenizer_config.json";
  std::error_code unseen;
  if (std::filesystem::exists(file, unseen)) {
    info = Json::parse(read_text_file(file, kMostConfigBytes), nullptr, false);
    if (!info.is_object()) info = Json::object();
  }
  const chat::ChatFiles files = chat::read_chat_files(model.directory());
  for (const auto& [name, token] : files.tokens.items()) {
    if (token.text() != nullptr) info[name.text()->text] = token.text()->text;
  }
  if (const auto found = files.templates.find("default"); found != files.templates.end()) {
    info["chat_template"] = found->second.text;
  }
  if (!info.contains("eos_token") && !model.options().eos_ids.empty()) {
    info["eos_token"] = model.tokenizer().token_text(model.options().eos_ids.front());
  }
  return info;
}

Json model_card(const ServedModel& model, std::int64_t created) {
  Json card;
  card["id"] = model.name();
  card["object"] = "model";
  card["created"] = created;
  card["owned_by"] = "zero-infer";
  card["root"] = model.directory().string();
  card["max_model_len"] = model.room();
  return card;
}

Json model_list(const ServedModel& model, std::int64_t created) {
  Json list;
  list["object"] = "list";
  list["data"] = Json::array({model_card(model, created)});
  return list;
}

}  // namespace zi
