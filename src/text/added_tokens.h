#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/split_budget.h"

namespace zi {

/// How far a token that is found in a text reaches, and where it counts.
struct TokenReach {
  bool single_word = false;  // not where it touches another character of a word
  bool lstrip = false;       // with the white space before it,
  bool rstrip = false;       // and after it

  bool operator==(const TokenReach&) const = default;
};

/// Tokens that are found in the text itself, before it is cut into pieces.
class AddedTokens {
 public:
  struct Token {
    std::string content;
    std::int32_t id;
    TokenReach reach{};
  };
  AddedTokens() = default;
  explicit AddedTokens(std::vector<Token> tokens);

  /// Calls `on_token` for each match (leftmost, the longest of those) and `on_text` for each
  /// maximal, non-empty stretch between matches, in order. `text` is valid UTF-8. Throws
  /// PromptError when the budget is spent.
  void split(std::string_view text, SplitBudget& budget,
             const std::function<void(std::string_view)>& on_text,
             const std::function<void(std::int32_t)>& on_token) const;

 private:
  const Token* match(std::string_view text) const;
  std::vector<Token> tokens_;              // by content, compared by bytes
  std::array<std::size_t, 257> begins_{};  // of the tokens with each first byte
};

/// Token -> id, as the model of a tokenizer.json lists it.
using Vocabulary = std::unordered_map<std::string, std::int32_t>;

/// A token that a file names beside the vocabulary.
struct NamedToken {
  std::string content;
  std::optional<std::int32_t> id;  // where the file says it
  bool special = false;            // left out of decoded text
  std::optional<bool> normalized;  // searched after those that are not; absent: if not special
  TokenReach reach;
  std::string file;  // for messages

  bool is_normalized() const { return normalized.value_or(!special); }
};

/// A token as files describe it: an object with `content` and flags. `file` goes into the token.
/// Throws CheckpointError without the file.
NamedToken named_token(const nlohmann::json& value, const std::string& file);

/// The tokens named beside the vocabulary. Their ids are those that the reference (Hugging Face
/// tokenizers) gives: a token that has an id keeps it, any other gets the next free one, in the
/// order in which they are added. The reference does so whatever a file says; here a file that says
/// otherwise is refused.
class AddedVocabulary {
 public:
  struct Entry {
    std::int32_t id = 0;
    NamedToken token;  // as it was last named, but once special is always special
  };

  /// `vocabulary` must outlive this.
  explicit AddedVocabulary(const Vocabulary& vocabulary) : vocabulary_(&vocabulary) {}

  bool contains(const std::string& content) const { return by_content_.contains(content); }
  /// The id of a token, named or of the vocabulary.
  std::optional<std::int32_t> known_id(const std::string& content) const;
  /// Null where it was not named.
  const NamedToken* find(const std::string& content) const;
  /// Throws CheckpointError with the token's file.
  void add(const NamedToken& token);
  /// In the order of their first addition.
  const std::vector<Entry>& entries() const { return entries_; }

 private:
  std::int32_t id_of(const NamedToken& token) const;

  const Vocabulary* vocabulary_;
  std::vector<Entry> entries_;
  std::unordered_map<std::string, std::size_t> by_content_;
  std::int32_t largest_ = -1;
};

}  // namespace zi
