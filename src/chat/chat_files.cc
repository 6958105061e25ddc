#include "chat/chat_files.h"

#include <fmt/format.h>

#include <array>
#include <nlohmann/json.hpp>
#include <system_error>

#include "base/json_file.h"
#include "base/printable_text.h"
#include "base/utf8.h"
#include "zero_infer/error.h"

namespace zi::chat {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr std::size_t kMostConfigBytes = std::size_t{64} << 20;
constexpr std::size_t kMostTemplateBytes = std::size_t{1} << 20;  // the longest known have 20 kB
constexpr std::array kTokens = {"bos_token", "eos_token", "unk_token", "sep_token",
                                "pad_token", "cls_token", "mask_token"};

bool is_there(const fs::path& path) {
  std::error_code code;
  return fs::symlink_status(path, code).type() != fs::file_type::not_found;
}

void add(ChatFiles& files, const std::string& template_name, std::string file, std::string text) {
  if (text.size() > kMostTemplateBytes) {
    throw CheckpointError(fmt::format("{}: a chat template has at most {} bytes, this one has {}",
                                      file, kMostTemplateBytes, text.size()));
  }
  if (const auto offset = first_invalid_utf8(text)) {
    throw CheckpointError(fmt::format("{}: invalid UTF-8 at byte {}", file, *offset));
  }
  files.templates[template_name] = {std::move(file), std::move(text)};
}

std::optional<json> read_config(const fs::path& path) {
  if (!is_there(path)) return std::nullopt;
  return parse_json_object(read_text_file(path, kMostConfigBytes), path.string());
}

/// The text of a token: a text, or an object with `content`.
Value token_text(const json& value, const char* key, const std::string& file) {
  const json* text = &value;
  if (const auto content = value.find("content"); value.is_object() && content != value.end()) {
    text = &*content;
  }
  if (!text->is_string()) {
    throw CheckpointError(
        fmt::format("{}: `{}` is {}; a text or an object with `content` was expected", file, key,
                    in_quotes(value.dump(-1, ' ', false, json::error_handler_t::replace))));
  }
  return Value::text(text->get<std::string>());
}

void read_tokens(const json& config, const std::string& file,
                 std::map<std::string, Value>& tokens) {
  for (const char* name : kTokens) {
    const auto found = config.find(name);
    if (found == config.end()) continue;
    tokens.erase(name);
    if (!found->is_null()) tokens[name] = token_text(*found, name, file);
  }
  const auto more = config.find("additional_special_tokens");
  if (more == config.end() || !more->is_array() || more->empty()) return;
  std::vector<Value> texts;
  for (const json& token : *more) {
    texts.push_back(token_text(token, "additional_special_tokens", file));
  }
  tokens["additional_special_tokens"] = Value::list(std::move(texts));
}

/// `chat_template` of tokenizer_config.json: a text, or a list of {"name", "template"}.
void read_template(const json& config, const std::string& file, ChatFiles& files) {
  const auto found = config.find("chat_template");
  if (found == config.end() || found->is_null()) return;
  const std::string name = file + ", chat_template";
  if (found->is_string()) {
    add(files, "default", name, found->get<std::string>());
    return;
  }
  const auto is_text = [](const json& item, const char* key) {
    const auto value = item.find(key);
    return value != item.end() && value->is_string();
  };
  if (!found->is_array()) {
    throw CheckpointError(
        fmt::format("{}: `chat_template` is neither a text nor a list of named templates", file));
  }
  for (const json& item : *found) {
    if (!item.is_object() || !is_text(item, "name") || !is_text(item, "template")) {
      throw CheckpointError(
          fmt::format("{}: a template of `chat_template` has no `name` and `template`", file));
    }
    const auto key = item.at("name").get<std::string>();
    if (key != "default" && key != "tool_use") {  // the only ones that are ever chosen
      files.unused.push_back(key);
      continue;
    }
    add(files, key, fmt::format("{} `{}`", name, key), item.at("template").get<std::string>());
  }
}

}  // namespace

ChatFiles read_chat_files(const fs::path& directory) {
  ChatFiles files;
  const fs::path own = directory / "chat_template.jinja";
  const fs::path tools = directory / "additional_chat_templates" / "tool_use.jinja";
  for (const auto& [path, name] : {std::pair(own, "default"), std::pair(tools, "tool_use")}) {
    if (is_there(path)) {
      add(files, name, path.string(), read_text_file(path, kMostTemplateBytes));
    }
  }
  std::map<std::string, Value> tokens;
  const fs::path config_file = directory / "tokenizer_config.json";
  const std::optional<json> config = read_config(config_file);
  files.names_bos = config && config->contains("bos_token");
  if (config) {
    read_tokens(*config, config_file.string(), tokens);
    // The files of their own take the place of all templates here.
    if (files.templates.empty()) read_template(*config, config_file.string(), files);
  }
  // The reference looks into the older file only where the config has no such list.
  if (!config || !config->contains("added_tokens_decoder")) {
    const fs::path map_file = directory / "special_tokens_map.json";
    if (const auto map = read_config(map_file)) {
      read_tokens(*map, map_file.string(), tokens);
      files.names_bos = files.names_bos || map->contains("bos_token");
    }
  }
  for (auto& [name, value] : tokens) files.tokens.set(Value::text(name), value);
  return files;
}

}  // namespace zi::chat
