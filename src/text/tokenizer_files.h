#pragma once

#include <optional>
#include <string>

namespace zi {

/// The text of a file; `name` is for messages.
struct TextFile {
  std::string name;
  std::string text;
};

/// What a tokenizer is made from: tokenizer.json, and the files that may be next to it.
struct TokenizerFiles {
  TextFile tokenizer;                            // vocab.json where there is a merges.txt
  std::optional<TextFile> config{};              // tokenizer_config.json
  std::optional<TextFile> special_tokens_map{};  // special_tokens_map.json
  std::optional<TextFile> added_tokens{};        // added_tokens.json
  std::optional<TextFile> merges{};              // merges.txt, in place of a tokenizer.json
};

}  // namespace zi
