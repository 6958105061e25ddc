#include <xxhash.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/utf8.h"
#include "text/json_members.h"
#include "text/token_files.h"
#include "text/tokenizer_data.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

using nlohmann::json;

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

  /// The bytes of a token; nothing when one of its characters is not of the alphabet. (JSON text
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

  /// As the reference decodes: a token with any other character means its own UTF-8 bytes.
  std::string decoded(const std::string& token) const { return bytes(token).value_or(token); }

 private:
  std::array<int, 0x180> bytes_;
  std::array<std::string, 256> characters_;
};

std::string type_of(const json& object, const char* what) {
  if (!object.is_object()) refuse("{} is {}, not an object", what, shown(object));
  const json& type = member(object, "type");
  if (!type.is_string()) refuse("{} has no `type`", what);
  return type.get<std::string>();
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
  if (byte_level) {
    refuse("the pre_tokenizer {} after ByteLevel is not supported", in_quotes(type));
  }
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
    refuse("the pre_tokenizer {} is not supported (only Sequence, Split and ByteLevel)",
           in_quotes(type));
  }
  steps.push_back(std::move(step));
}

/// Everything around the model that could change ids or text is either supported or refused by
/// name.
void check_surroundings(const json& root) {
  if (const json& normalizer = member(root, "normalizer"); !normalizer.is_null()) {
    refuse("the normalizer {} is not supported (only null)",
           in_quotes(type_of(normalizer, "normalizer")));
  }
  if (const json& post = member(root, "post_processor"); !post.is_null()) {
    const std::string type = type_of(post, "post_processor");
    if (type != "ByteLevel") {
      refuse("the post_processor {} may add tokens, which is not supported (only ByteLevel)",
             in_quotes(type));
    }
  }
  const json& decoder = member(root, "decoder");
  const std::string type = decoder.is_null() ? "null" : type_of(decoder, "decoder");
  if (type != "ByteLevel") {
    refuse("the decoder {} is not supported (only ByteLevel)", in_quotes(type));
  }
  // Every call of the Python reference sets both again, so what the file says has no effect there.
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
  if (used[i]) {
    refuse("the id {} is given twice, the second time to the token {}", id, in_quotes(token));
  }
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
    std::string text = alphabet.decoded(token);
    data.longest_token_bytes = std::max(data.longest_token_bytes, text.size());
    set_token(data, used, id, token, std::move(text));
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
      if (it == vocabulary.end()) {
        refuse("merge {} needs {}, which `vocab` lacks", i, in_quotes(token));
      }
      return it->second;
    };
    const std::int32_t left_id = id_of(left);
    const std::int32_t right_id = id_of(right);
    bpe.add_merge(left_id, right_id, rank++, id_of(left + right));
  }
}

/// The `added_tokens` of tokenizer.json.
void add_own_tokens(const json& root, const std::string& file, AddedVocabulary& added) {
  const json& tokens = member(root, "added_tokens");
  if (tokens.is_null()) return;
  if (!tokens.is_array()) refuse("{}: `added_tokens` is not an array", file);
  for (const json& entry : tokens) {
    const NamedToken token = in_file(file, [&] {
      NamedToken read = named_token(entry, file);
      if (read.content.empty()) refuse("an entry of `added_tokens` has no `content`");
      read.id = token_id(member(entry, "id"), read.content);
      return read;
    });
    if (added.contains(token.content)) {
      refuse("{}: the added token {} is there twice", file, in_quotes(token.content));
    }
    added.add(token);
  }
}

/// Puts the added tokens into the table of ids, and where text is searched for them.
void take_added_tokens(const AddedVocabulary& added, const Alphabet& alphabet,
                       const Vocabulary& vocabulary, std::vector<bool>& used, TokenizerData& data) {
  std::vector<AddedTokens::Token> verbatim;
  std::vector<AddedTokens::Token> normalized;
  for (const auto& [id, token] : added.entries()) {
    const std::string& content = token.content;
    std::string bytes = token.special ? std::string() : alphabet.decoded(content);
    if (vocabulary.contains(content)) {
      data.token_bytes[static_cast<std::size_t>(id)] = std::move(bytes);
    } else {
      set_token(data, used, id, content, std::move(bytes));
    }
    data.longest_token_bytes = std::max(data.longest_token_bytes, content.size());
    data.added_text.emplace(id, content);
    (token.is_normalized() ? normalized : verbatim).push_back({content, id});
  }
  data.verbatim = AddedTokens(std::move(verbatim));
  data.normalized = AddedTokens(std::move(normalized));
}

json parse_root(const TextFile& file) {
  json root;
  try {
    root = json::parse(file.text);
  } catch (const json::exception& error) {
    refuse("it is not JSON: {}", in_quotes(error.what()));
  }
  if (!root.is_object()) refuse("it is not a JSON object");
  return root;
}

/// Equal for equal files; which of them are there counts as well.
std::uint64_t hash_of(const TokenizerFiles& files) {
  std::vector<std::uint64_t> hashes;
  const auto add = [&](const std::string& text) {
    hashes.push_back(XXH3_64bits(text.data(), text.size()));
  };
  add(files.tokenizer.text);
  for (const auto* file : {&files.config, &files.special_tokens_map, &files.added_tokens}) {
    hashes.push_back(file->has_value() ? 1 : 0);
    if (file->has_value()) add((*file)->text);
  }
  return XXH3_64bits(hashes.data(), hashes.size() * sizeof(hashes.front()));
}

}  // namespace

TokenizerData parse_tokenizer(const TokenizerFiles& files) {
  const std::string& name = files.tokenizer.name;
  const Alphabet alphabet;
  TokenizerData data;
  std::vector<bool> used;
  Vocabulary vocabulary;
  const json root = in_file(name, [&] {
    json parsed = parse_root(files.tokenizer);
    const json& model = member(parsed, "model");
    if (!model.is_object()) refuse("it has no `model`");
    check_surroundings(parsed);
    check_model_options(model);
    bool byte_level = false;
    if (const json& steps = member(parsed, "pre_tokenizer"); !steps.is_null()) {
      parse_pre_tokenizer(steps, 0, byte_level, data.pre_tokenizer);
    }
    if (!byte_level) {
      refuse("its pre_tokenizer is not ByteLevel; other alphabets are not supported");
    }
    vocabulary = parse_vocabulary(model, alphabet, used, data);
    parse_merges(model, vocabulary, data.bpe);
    return parsed;
  });
  AddedVocabulary added(vocabulary);
  add_own_tokens(root, name, added);
  for (const NamedToken& token : tokens_beside(files, added)) added.add(token);
  in_file(name, [&] { take_added_tokens(added, alphabet, vocabulary, used, data); });
  data.fingerprint = hash_of(files);
  return data;
}

}  // namespace zi
