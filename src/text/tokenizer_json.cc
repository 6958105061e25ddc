#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_set>
#include <utility>

#include "base/json_file.h"
#include "base/utf8.h"
#include "text/byte_alphabet.h"
#include "text/gpt2_files.h"
#include "text/json_members.h"
#include "text/token_files.h"
#include "text/tokenizer_data.h"
#include "text/tokenizer_parts.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

using nlohmann::json;

/// The texts of all tokens, as the decoder takes them.
constexpr std::size_t kMostDecodedBytes = std::size_t{256} << 20;

/// What is needed to fill the tables of a tokenizer.
class Builder {
 public:
  Builder(const json& root, TokenizerData& data);

  const Vocabulary& vocabulary() const { return vocabulary_; }
  /// Puts the added tokens into the table of ids, and where text is searched for them.
  void take(const AddedVocabulary& added);
  /// Checks what depends on all tokens.
  void finish();

 private:
  void read_vocabulary(const json& model);
  void read_bytes(const json& model);
  void read_characters(const json& model);
  void set_token(std::int32_t id, const std::string& token, std::string bytes);
  std::string decoded(const std::string& token);

  TokenizerData* data_;
  DecoderPart decoder_;
  bool byte_level_ = false;
  ByteAlphabet alphabet_;
  Vocabulary vocabulary_;
  std::vector<bool> used_;  // ids
  SplitBudget budget_;      // of what is made of all tokens
  std::size_t decoded_bytes_ = 0;
  std::size_t longest_ = 1;
  bool limited_ = true;  // no token stands for any number of bytes
};

void check_model_options(const json& model) {
  if (const json& type = member(model, "type"); !type.is_null() && type != "BPE") {
    refuse("the model {} is not supported (only BPE)", shown(type));
  }
  if (const json& dropout = member(model, "dropout"); !dropout.is_null() && dropout != 0) {
    refuse("`dropout` {} is not supported: ids would be random", shown(dropout));
  }
  for (const char* key : {"byte_fallback", "fuse_unk", "ignore_merges"}) flag(model, key, false);
  if (const json& unknown = member(model, "unk_token");
      !unknown.is_null() && !unknown.is_string()) {
    refuse("`unk_token` is {}, which is no text", shown(unknown));
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (const json& affix = member(model, key); !affix.is_null() && affix != "") {
      refuse("`{}` {} is not supported", key, shown(affix));
    }
  }
}

/// The reference asks where a piece began in the text before it was normalized.
void check_first_piece(const TokenizerData& data) {
  const auto at_front = [](const PreTokenizerStep& step) {
    return step.metaspace && step.metaspace->prepend == Metaspace::Prepend::kFirst;
  };
  const auto moves = [](const NormalizerStep& step) {
    return step.replace || !step.prepend.empty();
  };
  if (std::ranges::any_of(data.pre_tokenizer, at_front) &&
      std::ranges::any_of(data.normalizer, moves)) {
    refuse(
        "the pre_tokenizer Metaspace with the `prepend_scheme` `first` is not supported behind a "
        "normalizer with Prepend or Replace");
  }
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

Builder::Builder(const json& root, TokenizerData& data)
    : data_(&data), budget_(SplitBudget::for_text(std::size_t{3} << 20)) {
  if (const json& version = member(root, "version"); !version.is_null() && version != "1.0") {
    refuse("its `version` is {}; 1.0 is supported", shown(version));
  }
  const json& model = member(root, "model");
  if (!model.is_object()) refuse("it has no `model`");
  check_model_options(model);
  data.normalizer = parse_normalizer(member(root, "normalizer"));
  PreTokenizerPart pre_tokenizer = parse_pre_tokenizer(member(root, "pre_tokenizer"));
  data.pre_tokenizer = std::move(pre_tokenizer.steps);
  byte_level_ = pre_tokenizer.byte_level;
  check_first_piece(data);
  data.post_processor = parse_post_processor(member(root, "post_processor"));
  decoder_ = parse_decoder(member(root, "decoder"));
  data.decoder = decoder_.steps;
  read_vocabulary(model);
  if (byte_level_) {
    read_bytes(model);
  } else {
    read_characters(model);
  }
  parse_merges(model, vocabulary_, data.bpe);
  for (const PreTokenizerStep& step : data.pre_tokenizer) {
    if (step.split && step.behavior == SplitBehavior::kRemoved) limited_ = false;
  }
}

std::string Builder::decoded(const std::string& token) {
  std::string text = decoded_token(decoder_, alphabet_, token, budget_);
  decoded_bytes_ += text.size();
  if (decoded_bytes_ > kMostDecodedBytes) {
    refuse("the decoder makes more than {} MiB of the tokens", kMostDecodedBytes >> 20);
  }
  return text;
}

void Builder::set_token(std::int32_t id, const std::string& token, std::string bytes) {
  const auto i = static_cast<std::size_t>(id);
  if (i >= used_.size()) {
    used_.resize(i + 1);
    data_->token_bytes.resize(i + 1);
    data_->in_text.resize(i + 1);
  }
  if (used_[i]) {
    refuse("the id {} is given twice, the second time to the token {}", id, in_quotes(token));
  }
  used_[i] = true;
  data_->token_bytes[i] = std::move(bytes);
  data_->in_text[i] = true;
}

void Builder::read_vocabulary(const json& model) {
  const json& entries = member(model, "vocab");
  if (!entries.is_object() || entries.empty()) refuse("the model has no `vocab`");
  const bool ignore_merges = flag(model, "ignore_merges", false);
  vocabulary_.reserve(entries.size());
  for (const auto& [token, value] : entries.items()) {
    const std::int32_t id = token_id(value, token);
    vocabulary_.emplace(token, id);
    set_token(id, token, decoded(token));
    const auto bytes = byte_level_ ? alphabet_.bytes(token) : std::optional(token);
    longest_ = std::max(longest_, bytes.value_or(token).size());
    if (ignore_merges && bytes) data_->bpe.whole.emplace(*bytes, id);
  }
}

bool in_utf8(std::size_t byte) { return byte < 0xC0 || (byte > 0xC1 && byte < 0xF5); }

/// Bytes of text that published vocabularies lack: control characters, and what begins only
/// characters that Unicode has not assigned.
bool dispensable(std::size_t byte) {
  const bool unassigned = byte == 0xF1 || byte == 0xF2;
  const bool white_space = byte >= '\t' && byte <= '\r';
  return unassigned || byte == 0x7F || (byte < 0x20 && !white_space);
}

/// Byte-level: each byte has a token of its own, so that no text has an unknown part; but the
/// reference leaves out of a text what a vocabulary lacks.
void Builder::read_bytes(const json& model) {
  const bool left_out =
      member(model, "unk_token").is_null() && !flag(model, "byte_fallback", false);
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const auto it = vocabulary_.find(alphabet_.character(byte));
    data_->bpe.byte_ids[byte] = it == vocabulary_.end() ? -1 : it->second;
    if (it != vocabulary_.end() || !in_utf8(byte)) continue;
    if (!left_out || !dispensable(byte)) {
      refuse("`vocab` has no token for the byte 0x{:02x} (`{}`)", byte, alphabet_.character(byte));
    }
    limited_ = false;
  }
}

void Builder::read_characters(const json& model) {
  Bpe& bpe = data_->bpe;
  bpe.units = Bpe::Units::kCharacters;
  for (const auto& [token, id] : vocabulary_) {
    if (!token.empty() && utf8_front(token).bytes == token.size())
      bpe.characters.emplace(token, id);
  }
  bpe.byte_ids.fill(-1);
  const bool fallback = flag(model, "byte_fallback", false);
  for (std::size_t byte = 0; fallback && byte < 256; ++byte) {
    const auto it = vocabulary_.find(fmt::format("<0x{:02X}>", byte));
    if (it != vocabulary_.end()) bpe.byte_ids[byte] = it->second;
  }
  if (std::ranges::find(bpe.byte_ids, -1) == bpe.byte_ids.end()) return;  // nothing is unknown
  const json& unknown = member(model, "unk_token");
  const auto it =
      unknown.is_string() ? vocabulary_.find(unknown.get<std::string>()) : vocabulary_.end();
  if (it == vocabulary_.end()) {
    refuse(
        "its pre_tokenizer is not ByteLevel, and a character without a token has neither "
        "`byte_fallback` to the tokens of all bytes nor an `unk_token` of the vocabulary: {}",
        shown(unknown));
  }
  bpe.unknown = it->second;
  bpe.fuse_unknown = flag(model, "fuse_unk", false);
  limited_ = limited_ && !bpe.fuse_unknown;
  longest_ = std::max<std::size_t>(longest_, 4);
}

/// The `added_tokens` of tokenizer.json.
void add_own_tokens(const json& root, const std::string& file, AddedVocabulary& added) {
  const json& tokens = member(root, "added_tokens");
  if (tokens.is_null()) return;
  if (!tokens.is_array()) refuse("{}: `added_tokens` is not an array", file);
  for (const json& entry : tokens) {
    const NamedToken token = in_file(file, [&] {
      NamedToken read = named_token(entry, file);
      if (read.content.empty()) {
        refuse("the `content` of an entry of `added_tokens` with the id {} is empty",
               shown(member(entry, "id")));
      }
      read.id = token_id(member(entry, "id"), read.content);
      return read;
    });
    if (added.contains(token.content)) {
      refuse("{}: the added token {} is there twice", file, in_quotes(token.content));
    }
    added.add(token);
  }
}

void Builder::take(const AddedVocabulary& added) {
  std::vector<AddedTokens::Token> verbatim;
  std::vector<AddedTokens::Token> normalized;
  std::unordered_set<std::string> forms;
  for (const auto& [id, token] : added.entries()) {
    const std::string& content = token.content;
    // What the text is compared with; the reference decodes it, too.
    const std::string form = token.is_normalized() && !data_->normalizer.empty()
                                 ? normalize(data_->normalizer, content, budget_)
                                 : content;
    if (form.empty()) refuse("the normalizer leaves nothing of the token {}", in_quotes(content));
    if (token.is_normalized() && !forms.insert(form).second) {
      refuse("the normalizer makes the same of the token {} as of another", in_quotes(content));
    }
    std::string bytes = token.special ? std::string() : decoded(form);
    if (vocabulary_.contains(content)) {
      data_->token_bytes[static_cast<std::size_t>(id)] = std::move(bytes);
    } else {
      set_token(id, content, std::move(bytes));
    }
    data_->in_text[static_cast<std::size_t>(id)] = !token.special;
    longest_ = std::max({longest_, content.size(), form.size()});
    limited_ = limited_ && !token.reach.lstrip && !token.reach.rstrip;
    data_->added_text.emplace(id, content);
    (token.is_normalized() ? normalized : verbatim).push_back({form, id, token.reach});
  }
  data_->verbatim = AddedTokens(std::move(verbatim));
  data_->normalized = AddedTokens(std::move(normalized));
}

void Builder::finish() {
  for (const auto* ids : {&data_->post_processor.before, &data_->post_processor.after}) {
    for (const std::int32_t id : *ids) {
      const auto i = static_cast<std::size_t>(id);
      if (i >= used_.size() || !used_[i]) {
        refuse("the post_processor adds the id {}, which no token has", id);
      }
    }
  }
  const std::optional<std::size_t> shrinking = most_shrinking(data_->normalizer);
  data_->longest_token_bytes.reset();
  if (limited_ && shrinking) data_->longest_token_bytes = longest_ * *shrinking;
}

/// Equal for equal files; which of them are there counts as well.
std::uint64_t hash_of(const TokenizerFiles& files) {
  std::vector<std::uint64_t> hashes;
  const auto add = [&](const std::string& text) {
    hashes.push_back(XXH3_64bits(text.data(), text.size()));
  };
  add(files.tokenizer.text);
  for (const auto* file :
       {&files.config, &files.special_tokens_map, &files.added_tokens, &files.merges}) {
    hashes.push_back(file->has_value() ? 1 : 0);
    if (file->has_value()) add((*file)->text);
  }
  return XXH3_64bits(hashes.data(), hashes.size() * sizeof(hashes.front()));
}

/// Calls `work`; a budget that is spent while tokens are prepared is the file's fault.
template <typename Work>
auto prepared(const std::string& file, Work work) {
  return in_file(file, [&] {
    try {
      return work();
    } catch (const PromptError& error) {
      refuse("its own tokens cannot be prepared: {}", error.what());
    }
  });
}

void warn_of_unused(const json& root) {
  // Every call of the Python reference sets both again, so what the file says has no effect there.
  if (!member(root, "truncation").is_null() || !member(root, "padding").is_null()) {
    log_warning("the tokenizer's `truncation` and `padding` are not applied to prompts");
  }
}

}  // namespace

TokenizerData parse_tokenizer(const TokenizerFiles& files) {
  const std::string& name = files.tokenizer.name;
  const TokenizerSettings settings = TokenizerSettings::parse(files);
  TokenizerData data;
  Gpt2Files gpt2;
  if (files.merges) {
    gpt2 = read_gpt2_files(files, settings);
  } else {
    gpt2.root = parse_json_object(files.tokenizer.text, name);
    warn_of_unused(gpt2.root);
  }
  Builder builder = prepared(name, [&] { return Builder(gpt2.root, data); });
  AddedVocabulary added(builder.vocabulary());
  add_own_tokens(gpt2.root, name, added);
  for (const NamedToken& token : gpt2.special) added.add(token);
  for (const NamedToken& token : tokens_beside(files, settings, added)) added.add(token);
  prepared(name, [&] {
    builder.take(added);
    if (gpt2.put_before) {
      const auto id = added.known_id(*gpt2.put_before);
      if (!id) refuse("`bos_token` {} is no token", in_quotes(*gpt2.put_before));
      data.post_processor.before = {*id};
    }
    builder.finish();
  });
  if (!files.merges) {
    compare_first_token(files, settings, !data.post_processor.before.empty());
  }
  data.fingerprint = hash_of(files);
  return data;
}

}  // namespace zi
