#include "text/gpt2_files.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/json_file.h"
#include "text/json_members.h"

namespace zi {
namespace {

using nlohmann::json;

/// What GPT2Tokenizer takes for `bos_token`, `eos_token` and `unk_token` where no file names them.
constexpr const char* kDefaultToken = "<|endoftext|>";

/// One merge a line: `a b`.
json merges_of(std::string_view text) {
  json merges = json::array();
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!line.empty()) merges.push_back(std::string(line));
  }
  return merges;
}

/// The text of a special token, which is a string or an object with `content`.
std::optional<std::string> named(const json& object, const char* key) {
  const json& value = member(object, key);
  const json& content = value.is_object() ? member(value, "content") : value;
  if (!content.is_string()) return std::nullopt;
  return content.get<std::string>();
}

}  // namespace

Gpt2Files read_gpt2_files(const TokenizerFiles& files, const TokenizerSettings& settings) {
  const json& config = settings.config;
  const json& map = settings.special_tokens_map;
  json vocabulary = parse_json_object(files.tokenizer.text, files.tokenizer.name);
  const std::string& place = files.config ? files.config->name : files.tokenizer.name;
  return in_file(place, [&] {
    Gpt2Files made;
    for (const char* key : {"bos_token", "eos_token", "unk_token"}) {
      if (config.contains(key) || map.contains(key) || !vocabulary.contains(kDefaultToken))
        continue;
      NamedToken token;
      token.content = kDefaultToken;
      token.special = true;
      token.file = files.tokenizer.name;
      made.special = {token};
    }
    if (flag(config, "add_bos_token", false)) {
      const bool is_named = config.contains("bos_token") || map.contains("bos_token");
      made.put_before = named(config.contains("bos_token") ? config : map, "bos_token");
      if (!is_named && !made.special.empty()) made.put_before = kDefaultToken;
      if (!made.put_before) refuse("`add_bos_token` is true, and no file names the `bos_token`");
    }
    made.root = {
        {"pre_tokenizer",
         {{"type", "ByteLevel"}, {"add_prefix_space", flag(config, "add_prefix_space", false)}}},
        {"decoder", {{"type", "ByteLevel"}}},
        {"model",
         {{"type", "BPE"},
          {"vocab", std::move(vocabulary)},
          {"merges", merges_of(files.merges->text)}}}};
    return made;
  });
}

}  // namespace zi
