#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer_files.h"

namespace zi {

/// A byte-level BPE tokenizer read from tokenizer.json as Hugging Face tokenizers write it: special
/// tokens are matched in the text, what is between them is split by a regex (Oniguruma), its bytes
/// become letters of a byte-level alphabet, and pairs of these are merged by rank. Tokens that only
/// the files beside it name get the ids that Hugging Face's loader gives them, or are refused.
/// Immutable: any thread may use it.
class Tokenizer {
 public:
  /// Throws CheckpointError naming the file and what it does not support or lacks, and IoError.
  static Tokenizer load(const std::filesystem::path& tokenizer_json);
  /// The same from the files' texts.
  static Tokenizer parse(const TokenizerFiles& files);
  /// One token a byte, ids 0..255: for dummy weights without a tokenizer.json.
  static Tokenizer bytes();

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Ids of UTF-8 text, with nothing added before or after. Throws PromptError for invalid UTF-8
  /// (with the byte's offset), and where the tokenizer's patterns take too long.
  std::vector<std::int32_t> encode(std::string_view text) const;

  /// The bytes of the tokens, special ones left out; ids without a token give nothing.
  std::string decode(std::span<const std::int32_t> ids) const;
  /// The bytes of one token: possibly a part of a UTF-8 character. Empty for special tokens.
  std::string_view token_bytes(std::int32_t id) const;

  /// The text that means the token in a prompt, also for a special one; empty where there is no
  /// such token.
  std::string_view token_text(std::int32_t id) const;

  /// Ids from here on have no token and must never be sampled.
  std::int32_t size() const;
  /// No token covers more bytes of a text than this: n tokens cover at most n times as many.
  std::size_t longest_token_bytes() const;
  /// A hash of all bytes that were read: equal for equal files.
  std::uint64_t fingerprint() const;

 private:
  struct State;
  explicit Tokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Turns tokens into text as they come: returns whole UTF-8 characters only and holds back an
/// incomplete one. Bytes that can never become valid UTF-8 come out as U+FFFD.
class TextStream {
 public:
  explicit TextStream(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}
  std::string push(std::int32_t id);
  /// What is still held back, as U+FFFD where incomplete.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  std::string pending_;
};

}  // namespace zi
