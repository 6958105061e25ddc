#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "text/bpe.h"
#include "text/pre_tokenizer.h"

namespace zi {

/// Tokens that are found in the text itself, before it is cut into pieces.
class AddedTokens {
 public:
  void add(std::string content, std::int32_t id);
  /// Calls `token` for each match (leftmost, the longest of those) and `text` for each maximal,
  /// non-empty stretch between matches, in order.
  void split(std::string_view text, const std::function<void(std::string_view)>& on_text,
             const std::function<void(std::int32_t)>& on_token) const;

 private:
  struct Token {
    std::string content;
    std::int32_t id;
  };
  const Token* match(std::string_view text) const;
  std::array<std::vector<Token>, 256> by_first_byte_;  // each longest first
  bool any_ = false;
};

/// What a tokenizer.json says.
struct TokenizerData {
  Bpe bpe;
  PreTokenizer pre_tokenizer;
  AddedTokens verbatim;                  // searched in the whole text,
  AddedTokens normalized;                // then these in what is left (the reference's order)
  std::vector<std::string> token_bytes;  // by id; empty: special, or no such token
  std::uint64_t fingerprint = 0;         // of all bytes that were read, in the order of reading

  /// Adds a file's bytes to the fingerprint: call it for each file that has a say.
  void add_to_fingerprint(std::string_view file_bytes);
};

/// Throws CheckpointError with the reason (without the file's name): not JSON, something missing or
/// inconsistent, or a feature that is not supported and would change ids.
TokenizerData parse_tokenizer_json(std::string_view text);

}  // namespace zi
