#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "text/tokenizer_data.h"
#include "base/utf8.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

using nlohmann::json;
using Vocabulary = std::unordered_map<std::string, std::int32_t>;

/// Ids index a table; a file that claims more is damaged.
constexpr std::int64_t kMostIds = 1 << 24;
constexpr int kMostNesting = 8;
constexpr std::size_t kMostSteps = 32;

/// The byte-level alphabet: each byte has a printable character of its own (below U+0180).
class Alphabet {
 public:
  Alphabet() {
    bytes_.fill(-1);
    std::uint32_t next = 256;
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
      const bool itself = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
      const std::uint32_t character = itself ? byte : next++;
      bytes_[character] = static_cast<int>(byte);
      std::string& text = characters_[byte];
      if (character < 0x80) {
        text.push_back(static_cast<char>(character));
      } else {
        text.push_back(static_cast<char>(0xC0 | character >> 6));
        text.push_back(static_cast<char>(0x80 | (character & 0x3F)));
      }
    }
  }
  const std::string& character(std::size_t byte) const { return characters_[byte]; }

  /// The bytes that a token stands for; nothing when a character is not of the alphabet. (JSON text
  /// has been checked to be UTF-8 by its parser.)
  std::optional<std::string> bytes(std::string_view token) const {
    std::string out;
    for (std::size_t i = 0; i < token.size();) {
      const std::size_t length = utf8_front(token.substr(i)).bytes;
      const auto lead = static_cast<unsigned char>(token[i]);
      std::size_t character = lead;
      if (length == 2) {
        character = (lead & 0x1Fu) << 6 | (static_cast<unsigned char>(token[i + 1]) & 0x3Fu);
      }
      if (length > 2 || character >= bytes_.size() || bytes_[character] < 0) return std::nullopt;
      out += static_cast<char>(bytes_[character]);
      i += length;
    }
    return out;
  }

  /// As the reference decodes: a token with another character stands for its own UTF-8.
  std::string decoded(const std::string& token) const { return bytes(token).value_or(token); }

 private:
  std::array<int, 0x180> bytes_;
  std::array<std::string, 256> characters_;
};

template <typename... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) {
  throw CheckpointError(fmt::format(format, std::forward<Args>(args)...));
}

/// A short form of a value for messages.
std::string shown(const json& value) {
  if (value.is_structured()) return value.is_array() ? "an array" : "an object";
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > 80) {
    text.resize(80);
    while (first_invalid_utf8(text)) text.pop_back();
    text += "..";
  }
  return text;
}

/// The member, or null where there is none.
const json& member(const json& object, const char* key) {
  static const json null;
  const auto it = object.find(key);
  return it == object.end() ? null : *it;
}

bool flag(const json& object, const char* key, bool absent) {
  const json& value = member(object, key);
  if (value.is_null()) return absent;
  if (!value.is_boolean()) refuse("`{}` is {} and not true or false", key, shown(value));
  return value.get<bool>();
}

std::string type_of(const json& object, const char* what) {
  if (!object.is_object()) refuse("{} is {} and not an object", what, shown(object));
  const json& type = member(object, "type");
  if (!type.is_string()) refuse("{} has no `type`", what);
  return type.get<std::string>();
}

std::int32_t token_id(const json& value, std::string_view token) {
  if (!value.is_number_integer() || value < 0 || value >= kMostIds) {
    refuse("the token `{}` has the id {}; ids are integers from 0 to {}", token, shown(value),
           kMostIds - 1);
  }
  return value.get<std::int32_t>();
}

void parse_pre_tokenizer(const json& node, int depth, bool& byte_level, PreTokenizer& steps) {
  const std::string type = type_of(node, "pre_tokenizer");
  if (depth > kMostNesting || steps.size() >= kMostSteps) {
    refuse("pre_tokenizer has more than {} levels or {} steps", kMostNesting, kMostSteps);
  }
  if (type == "Sequence") {
    const json& inner = member(node, "pretokenizers");
    if (!inner.is_array()) refuse("the pre_tokenizer Sequence has no array `pretokenizers`");
    for (const json& step : inner) parse_pre_tokenizer(step, depth + 1, byte_level, steps);
    return;
  }
  if (byte_level) refuse("the pre_tokenizer {} behind ByteLevel is not supported", type);
  PreTokenizerStep step;
  if (type == "ByteLevel") {
    byte_level = true;
    step.prefix_space = flag(node, "add_prefix_space", true);
    if (flag(node, "use_regex", true)) step.split = std::make_unique<Regex>(kGpt2Pattern);
  } else if (type == "Split") {
    // `invert` swaps matches and gaps, which makes no difference where both become pieces.
    const json& behavior = member(node, "behavior");
    if (behavior != "Isolated") {
      refuse("the pre_tokenizer Split with behavior {} is not supported (only \"Isolated\")",
             shown(behavior));
    }
    const json& pattern = member(node, "pattern");
    const json& regex = pattern.is_object() ? member(pattern, "Regex") : pattern;
    const json& literal = pattern.is_object() ? member(pattern, "String") : pattern;
    if (regex.is_string()) {
      step.split = std::make_unique<Regex>(regex.get<std::string>());
    } else if (literal.is_string() && !literal.get_ref<const std::string&>().empty()) {
      step.literal = literal.get<std::string>();
    } else {
      refuse("the pre_tokenizer Split has neither a `Regex` nor a `String` as its pattern");
    }
  } else {
    refuse("the pre_tokenizer {} is not supported (only Sequence, Split and ByteLevel)", type);
  }
  steps.push_back(std::move(step));
}

/// Everything around the model that could change ids or text is known, or refused by its name.
void check_surroundings(const json& root) {
  if (const json& normalizer = member(root, "normalizer"); !normalizer.is_null()) {
    refuse("the normalizer {} is not supported (only null)", type_of(normalizer, "normalizer"));
  }
  if (const json& post = member(root, "post_processor"); !post.is_null()) {
    const std::string type = type_of(post, "post_processor");
    if (type != "ByteLevel") {
      refuse("the post_processor {} may add tokens, which is not supported (only ByteLevel)", type);
    }
  }
  const json& decoder = member(root, "decoder");
  const std::string type = decoder.is_null() ? "null" : type_of(decoder, "decoder");
  if (type != "ByteLevel") refuse("the decoder {} is not supported (only ByteLevel)", type);
  // Calls of the Python reference set both anew, so that what the file says has no effect there.
  if (!member(root, "truncation").is_null() || !member(root, "padding").is_null()) {
    log_warning("the tokenizer's `truncation` and `padding` are not applied to prompts");
  }
}

void check_model_options(const json& model) {
  if (const json& type = member(model, "type"); !type.is_null() && type != "BPE") {
    refuse("the model {} is not supported (only BPE)", shown(type));
  }
  if (const json& dropout = member(model, "dropout"); !dropout.is_null() && dropout != 0) {
    refuse("`dropout` {} is not supported: ids would be random", shown(dropout));
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (const json& affix = member(model, key); !affix.is_null() && affix != "") {
      refuse("`{}` {} is not supported", key, shown(affix));
    }
  }
  // `unk_token` has no effect: that each byte has a token is checked.
  if (flag(model, "byte_fallback", false)) refuse("`byte_fallback` is not supported");
}

void set_token(TokenizerData& data, std::vector<bool>& used, std::int32_t id,
               const std::string& token, std::string bytes) {
  const auto i = static_cast<std::size_t>(id);
  if (i >= used.size()) {
    used.resize(i + 1);
    data.token_bytes.resize(i + 1);
  }
  if (used[i]) refuse("the id {} is given twice, the second time to the token `{}`", id, token);
  used[i] = true;
  data.token_bytes[i] = std::move(bytes);
}

Vocabulary parse_vocabulary(const json& model, const Alphabet& alphabet, std::vector<bool>& used,
                            TokenizerData& data) {
  const json& entries = member(model, "vocab");
  if (!entries.is_object() || entries.empty()) refuse("the model has no `vocab`");
  const bool ignore_merges = flag(model, "ignore_merges", false);
  Vocabulary vocabulary;
  vocabulary.reserve(entries.size());
  for (const auto& [token, value] : entries.items()) {
    const std::int32_t id = token_id(value, token);
    vocabulary.emplace(token, id);
    set_token(data, used, id, token, alphabet.decoded(token));
    if (!ignore_merges) continue;
    if (auto bytes = alphabet.bytes(token)) data.bpe.whole.emplace(*std::move(bytes), id);
  }
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const auto it = vocabulary.find(alphabet.character(byte));
    if (it == vocabulary.end()) {
      refuse("`vocab` has no token for the byte 0x{:02x} (`{}`)", byte, alphabet.character(byte));
    }
    data.bpe.byte_ids[byte] = it->second;
  }
  return vocabulary;
}

/// A merge is `"a b"` or `["a", "b"]`, by the version that wrote the file.
std::pair<std::string, std::string> merge_pair(const json& merge, std::size_t index) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  }
  if (merge.is_string()) {
    const auto& text = merge.get_ref<const std::string&>();
    const std::size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
      return {text.substr(0, space), text.substr(space + 1)};
    }
  }
  refuse("merge {} is {}; it should be \"a b\" or [\"a\", \"b\"]", index, shown(merge));
}

void parse_merges(const json& model, const Vocabulary& vocabulary, Bpe& bpe) {
  const json& merges = member(model, "merges");
  if (!merges.is_array()) refuse("the model has no `merges`");
  bpe.reserve(merges.size());
  std::int32_t rank = 0;
  for (std::size_t i = 0; i < merges.size(); ++i) {
    if (merges[i].is_string() && merges[i].get_ref<const std::string&>().starts_with("#version")) {
      continue;
    }
    const auto [left, right] = merge_pair(merges[i], i);
    const auto id_of = [&](const std::string& token) {
      const auto it = vocabulary.find(token);
      if (it == vocabulary.end()) refuse("merge {} needs `{}`, which `vocab` lacks", i, token);
      return it->second;
    };
    const std::int32_t left_id = id_of(left);
    const std::int32_t right_id = id_of(right);
    bpe.add_merge(left_id, right_id, rank++, id_of(left + right));
  }
}

void parse_added_tokens(const json& root, const Alphabet& alphabet, const Vocabulary& vocabulary,
                        std::vector<bool>& used, TokenizerData& data) {
  const json& tokens = member(root, "added_tokens");
  if (tokens.is_null()) return;
  if (!tokens.is_array()) refuse("`added_tokens` is not an array");
  std::unordered_set<std::string> seen;
  for (const json& token : tokens) {
    const json& content = token.is_object() ? member(token, "content") : token;
    if (!token.is_object() || !content.is_string() || content == "") {
      refuse("an entry of `added_tokens` has no `content`");
    }
    const auto& text = content.get_ref<const std::string&>();
    const std::int32_t id = token_id(member(token, "id"), text);
    if (!seen.insert(text).second) refuse("the added token `{}` stands there twice", text);
    for (const char* key : {"single_word", "lstrip", "rstrip"}) {
      if (flag(token, key, false)) {
        refuse("the added token `{}` has `{}`, which is not supported", text, key);
      }
    }
    const bool special = flag(token, "special", false);
    std::string bytes = special ? std::string() : alphabet.decoded(text);
    const auto known = vocabulary.find(text);
    if (known == vocabulary.end()) {
      set_token(data, used, id, text, std::move(bytes));
    } else if (known->second != id) {
      refuse("the added token `{}` has the id {}, but {} in `vocab`", text, id, known->second);
    } else {
      data.token_bytes[static_cast<std::size_t>(id)] = std::move(bytes);
    }
    (flag(token, "normalized", !special) ? data.normalized : data.verbatim).add(text, id);
  }
}

}  // namespace

TokenizerData parse_tokenizer_json(std::string_view text) {
  json root;
  try {
    root = json::parse(text);
  } catch (const json::exception& error) {
    refuse("it is not JSON: {}", error.what());
  }
  if (!root.is_object()) refuse("it is not a JSON object");
  const json& model = member(root, "model");
  if (!model.is_object()) refuse("it has no `model`");
  check_surroundings(root);
  check_model_options(model);

  TokenizerData data;
  bool byte_level = false;
  if (const json& pre_tokenizer = member(root, "pre_tokenizer"); !pre_tokenizer.is_null()) {
    parse_pre_tokenizer(pre_tokenizer, 0, byte_level, data.pre_tokenizer);
  }
  if (!byte_level) refuse("its pre_tokenizer is not ByteLevel; other alphabets are not supported");

  const Alphabet alphabet;
  std::vector<bool> used;
  const Vocabulary vocabulary = parse_vocabulary(model, alphabet, used, data);
  parse_merges(model, vocabulary, data.bpe);
  parse_added_tokens(root, alphabet, vocabulary, used, data);
  return data;
}

}  // namespace zi
