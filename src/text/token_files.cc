#include "text/token_files.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/json_file.h"
#include "text/json_members.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

/// The largest published ones have 33 MB; reading one takes ten times its size of memory.
constexpr std::size_t kMostFileBytes = std::size_t{64} << 20;

/// Names of special tokens, in the order in which the reference adds their tokens.
constexpr std::array kNames = {"bos_token", "eos_token", "unk_token", "sep_token",
                               "pad_token", "cls_token", "mask_token"};

std::optional<TextFile> read_if_there(const fs::path& path) {
  std::error_code code;
  if (fs::symlink_status(path, code).type() == fs::file_type::not_found) return std::nullopt;
  return TextFile{path.string(), read_text_file(path, kMostFileBytes)};
}

/// A special token as a name refers to it.
struct SpecialToken {
  NamedToken token;
  bool listed = true;  // added_tokens.json knows it as special: not where an AddedToken is marked
};

/// A token that one version of the reference adds and another does not.
struct Dispute {
  std::string key;  // what names it
  NamedToken token;
  bool listed;  // one of a list that another list replaces or completes; else it has a name
};

/// The special tokens that tokenizer_config.json and special_tokens_map.json name.
class SpecialNames {
 public:
  void read_config(const json& config, const std::string& file);
  void read_map(const json& map, const std::string& file);

  /// Named by one of the standard names.
  bool is_named(const std::string& content) const {
    return std::ranges::any_of(
        named_, [&](const auto& item) { return item.second.token.content == content; });
  }
  /// The tokens that are special where added_tokens.json has them.
  std::unordered_set<std::string> listed() const {
    std::unordered_set<std::string> contents;
    const auto add = [&](const SpecialToken& special) {
      if (special.listed) contents.insert(special.token.content);
    };
    std::ranges::for_each(extra_, add);
    for (const auto& [key, special] : named_) add(special);
    return contents;
  }
  /// Those that the reference adds last, in its order.
  std::vector<NamedToken> in_order() const {
    std::vector<NamedToken> tokens;
    for (const char* key : kNames) {
      if (const auto found = named_.find(key); found != named_.end()) {
        tokens.push_back(found->second.token);
      }
    }
    for (const auto* list : {&extra_, &late_}) {
      for (const SpecialToken& special : *list) tokens.push_back(special.token);
    }
    return tokens;
  }
  const std::vector<Dispute>& disputes() const { return disputes_; }

 private:
  /// How a file writes a token that is more than a text: the config marks it, the map does not.
  enum class Objects { kMarked, kAnySpecial };

  using List = std::vector<SpecialToken>;
  static SpecialToken token(const json& value, const std::string& key, const std::string& file,
                            Objects objects);
  static List list(const json& object, const char* key, const std::string& file, Objects objects);
  void read_standard_names(const json& object, const std::string& file, Objects objects);
  void read_own_names(const json& object, const std::string& file, Objects objects);

  std::map<std::string, SpecialToken> named_;  // by the standard name
  List extra_;
  List late_;  // as `extra_`, but unknown to added_tokens.json
  std::vector<Dispute> disputes_;
  bool config_lists_ = false;
};

bool is_marked(const json& value) {
  return value.is_object() && member(value, "__type") == "AddedToken";
}

SpecialToken SpecialNames::token(const json& value, const std::string& key, const std::string& file,
                                 Objects objects) {
  SpecialToken special;
  if (value.is_string()) {
    special.token.content = value.get<std::string>();
    special.token.special = true;
    special.token.file = file;
    return special;
  }
  if (!value.is_object() || (objects == Objects::kMarked && !is_marked(value))) {
    refuse("{} is {}; a text or an AddedToken was expected", in_quotes(key), shown(value));
  }
  special.token = named_token(value, file);
  if (objects == Objects::kMarked) {
    special.listed = false;
  } else {
    special.token.special = true;
  }
  return special;
}

SpecialNames::List SpecialNames::list(const json& object, const char* key, const std::string& file,
                                      Objects objects) {
  List tokens;
  const json& value = member(object, key);
  if (value.is_null()) return tokens;
  if (!value.is_array()) refuse("`{}` is {}; a list of tokens was expected", key, shown(value));
  for (const json& item : value) tokens.push_back(token(item, key, file, objects));
  return tokens;
}

void SpecialNames::read_standard_names(const json& object, const std::string& file,
                                       Objects objects) {
  for (const char* key : kNames) {
    const auto found = object.find(key);
    if (found == object.end()) continue;
    named_.erase(key);
    if (!found->is_null()) named_.emplace(key, token(*found, key, file, objects));
  }
}

/// Names such as `image_token`, which transformers 5 knows and 4 does not.
void SpecialNames::read_own_names(const json& object, const std::string& file, Objects objects) {
  for (const auto& [key, value] : object.items()) {
    const bool standard = std::ranges::find(kNames, key) != kNames.end();
    if (standard || !key.ends_with("_token") || key.starts_with("add_")) continue;
    const bool names = value.is_string() || is_marked(value) ||
                       (value.is_object() && objects == Objects::kAnySpecial);
    if (names) disputes_.push_back({key, token(value, key, file, objects).token, false});
  }
  const json& extra = member(object, "extra_special_tokens");
  if (!extra.is_object()) return;
  for (const auto& [key, value] : extra.items()) {
    disputes_.push_back(
        {"extra_special_tokens", token(value, key, file, Objects::kMarked).token, false});
  }
}

void SpecialNames::read_config(const json& config, const std::string& file) {
  read_standard_names(config, file, Objects::kMarked);
  read_own_names(config, file, Objects::kMarked);
  const json& extra = member(config, "extra_special_tokens");
  config_lists_ =
      config.contains("additional_special_tokens") || config.contains("extra_special_tokens");
  const List additional = list(config, "additional_special_tokens", file, Objects::kMarked);
  if (extra.is_object() || extra.is_null() || extra.empty()) {
    extra_ = additional;
  } else {
    extra_ = list(config, "extra_special_tokens", file, Objects::kMarked);
    for (const SpecialToken& special : additional) {
      disputes_.push_back({"additional_special_tokens", special.token, true});
    }
  }
}

void SpecialNames::read_map(const json& map, const std::string& file) {
  read_standard_names(map, file, Objects::kAnySpecial);
  read_own_names(map, file, Objects::kAnySpecial);
  const json& extra = member(map, "extra_special_tokens");
  if (!extra.is_object()) {
    for (const auto& special : list(map, "extra_special_tokens", file, Objects::kAnySpecial)) {
      extra_.push_back(special);
    }
  }
  const List additional = list(map, "additional_special_tokens", file, Objects::kAnySpecial);
  if (config_lists_ || !extra.is_null()) {
    for (const SpecialToken& special : additional) {
      disputes_.push_back({"additional_special_tokens", special.token, true});
    }
  } else {
    late_ = additional;
  }
}

void sort_by_id(std::vector<NamedToken>& tokens) {
  std::ranges::stable_sort(tokens, {}, [](const NamedToken& token) { return *token.id; });
}

/// `added_tokens_decoder` of tokenizer_config.json: id -> token.
std::vector<NamedToken> numbered_by_config(const json& decoder, const std::string& file) {
  if (!decoder.is_object()) {
    refuse("`added_tokens_decoder` is {}, not an object", shown(decoder));
  }
  std::vector<NamedToken> tokens;
  for (const auto& [key, value] : decoder.items()) {
    std::int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    const bool whole = error == std::errc() && end == key.data() + key.size();
    if (!whole || id < 0 || id >= kMostTokenIds || !value.is_object()) {
      refuse("`added_tokens_decoder` has {}: {}; an id from 0 to {} and a token were expected",
             in_quotes(key), shown(value), kMostTokenIds - 1);
    }
    tokens.push_back(named_token(value, file));
    tokens.back().id = id;
  }
  sort_by_id(tokens);
  return tokens;
}

/// added_tokens.json: token -> id.
std::vector<NamedToken> numbered_by_file(const json& added, const std::string& file,
                                         const SpecialNames& names) {
  const std::unordered_set<std::string> special = names.listed();
  std::vector<NamedToken> tokens;
  for (const auto& [content, id] : added.items()) {
    NamedToken token;
    token.content = content;
    token.id = token_id(id, content);
    token.special = special.contains(content);
    token.normalized = !token.special;
    token.file = file;
    tokens.push_back(std::move(token));
  }
  sort_by_id(tokens);
  return tokens;
}

/// What the files name, before it is compared with what tokenizer.json has.
struct Named {
  std::vector<NamedToken> numbered;  // by tokenizer_config.json, else by added_tokens.json
  bool by_config = false;
  SpecialNames names;
};

Named read_names(const TokenizerFiles& files, const TokenizerSettings& settings) {
  Named named;
  if (files.config) {
    const std::string& name = files.config->name;
    const json& config = settings.config;
    in_file(name, [&] {
      if (flag(config, "split_special_tokens", false)) {
        refuse("`split_special_tokens` is not supported: special tokens are found in the text");
      }
      named.names.read_config(config, name);
      named.by_config = config.contains("added_tokens_decoder");
      if (named.by_config) {
        named.numbered = numbered_by_config(config.at("added_tokens_decoder"), name);
      }
    });
  }
  // The reference looks into the older files only where the config has no such list.
  if (!named.by_config && files.special_tokens_map) {
    const std::string& name = files.special_tokens_map->name;
    in_file(name, [&] { named.names.read_map(settings.special_tokens_map, name); });
  }
  if (!named.by_config && files.added_tokens) {
    const std::string& name = files.added_tokens->name;
    const json added = parse_json_object(files.added_tokens->text, name);
    in_file(name, [&] { named.numbered = numbered_by_file(added, name, named.names); });
  }
  return named;
}

}  // namespace

TokenizerFiles read_tokenizer_files(const fs::path& file) {
  const fs::path directory = file.parent_path();
  TokenizerFiles files;
  files.tokenizer = {file.string(), read_text_file(file, kMostFileBytes)};
  files.config = read_if_there(directory / "tokenizer_config.json");
  files.special_tokens_map = read_if_there(directory / "special_tokens_map.json");
  files.added_tokens = read_if_there(directory / "added_tokens.json");
  if (file.filename() == "vocab.json") {
    const fs::path merges = directory / "merges.txt";
    files.merges = {merges.string(), read_text_file(merges, kMostFileBytes)};
  }
  return files;
}

TokenizerSettings TokenizerSettings::parse(const TokenizerFiles& files) {
  const auto object = [](const std::optional<TextFile>& file) {
    return file ? parse_json_object(file->text, file->name) : json::object();
  };
  TokenizerSettings settings{object(files.config), json::object()};
  // GPT2Tokenizer reads the map anyway.
  if (files.merges || !settings.config.contains("added_tokens_decoder")) {
    settings.special_tokens_map = object(files.special_tokens_map);
  }
  return settings;
}

void compare_first_token(const TokenizerFiles& files, const TokenizerSettings& settings,
                         bool puts_one_before) {
  if (!files.config) return;
  const std::string& name = files.config->name;
  const bool wanted =
      in_file(name, [&] { return flag(settings.config, "add_bos_token", puts_one_before); });
  if (wanted == puts_one_before) return;
  log_warning(fmt::format(
      "{} has `add_bos_token` {}, and the post_processor of tokenizer.json puts {} in front of a "
      "text; it is done as tokenizer.json says",
      name, wanted, puts_one_before ? "a token" : "no token"));
}

std::vector<NamedToken> tokens_beside(const TokenizerFiles& files,
                                      const TokenizerSettings& settings,
                                      const AddedVocabulary& known) {
  const Named named = read_names(files, settings);
  std::vector<NamedToken> tokens;
  std::unordered_map<std::string, std::size_t> places;  // content -> last place in `tokens`
  const auto append = [&](NamedToken token) {
    places[token.content] = tokens.size();
    tokens.push_back(std::move(token));
  };
  for (NamedToken token : named.numbered) {
    if (token.content.empty()) continue;
    // The flags of tokenizer.json take precedence over those of added_tokens.json, but its ids do
    // not.
    const NamedToken* const there = known.find(token.content);
    if (there != nullptr && !named.by_config) {
      token.special = there->special;
      token.normalized = there->normalized;
      token.reach = there->reach;
    }
    token.special = token.special || named.names.is_named(token.content);
    append(std::move(token));
  }
  const std::size_t numbered = tokens.size();
  for (NamedToken token : named.names.in_order()) {
    const auto place = places.find(token.content);
    if (token.content.empty() || (place != places.end() && place->second < numbered)) continue;
    const bool is_named = named.names.is_named(token.content);
    if (const NamedToken* const there = known.find(token.content)) {
      // A name makes a token of tokenizer.json special, unless the config has a list of its own.
      if (named.by_config || !is_named) continue;
      token = *there;
    }
    token.special = token.special || is_named;
    append(std::move(token));
  }
  for (const auto& [key, token, in_a_list] : named.names.disputes()) {
    // A name adds its token before the lists, which gives it another id than the lists would.
    const auto place = places.find(token.content);
    const bool added = place != places.end() && (in_a_list || place->second < numbered);
    const NamedToken* const there = added ? &tokens[place->second] : known.find(token.content);
    if (token.content.empty() || (there != nullptr && there->special)) continue;
    refuse(
        "{}: {} names the token {}, which is not among the special tokens of tokenizer.json; "
        "versions of the reference disagree on what it is: add it to `added_tokens` there, with "
        "its id and `\"special\": true`",
        token.file, in_quotes(key), in_quotes(token.content));
  }
  return tokens;
}

}  // namespace zi
