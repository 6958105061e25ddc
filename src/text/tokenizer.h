#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/decoder.h"
#include "text/tokenizer_files.h"

namespace zi {

/// A byte-pair tokenizer as Hugging Face tokenizers write it in tokenizer.json, or as vocab.json
/// and merges.txt hold GPT-2's: added tokens are found in the text, what is between them is
/// normalized, cut into pieces, and merged by rank from bytes or characters; the post-processor
/// puts special tokens around the whole. Tokens that only the files beside it name get the ids that
/// Hugging Face's loader gives them, or are refused. Immutable: any thread may use it.
class Tokenizer {
 public:
  /// From tokenizer.json, or from vocab.json with the merges.txt next to it. Throws CheckpointError
  /// naming the file and what it does not support or lacks, and IoError.
  static Tokenizer load(const std::filesystem::path& file);
  /// From the one of these files that is there; nothing where none is.
  static std::optional<Tokenizer> in_directory(const std::filesystem::path& directory);
  /// From the files' texts.
  static Tokenizer parse(const TokenizerFiles& files);
  /// One token a byte, ids 0..255: for dummy weights without a tokenizer.json.
  static Tokenizer bytes();

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Ids of UTF-8 text, with `add_special_tokens` between those that the post-processor adds (such
  /// as one for the beginning of a text). Throws PromptError for invalid UTF-8 (with the byte's
  /// offset), and where the tokenizer's patterns take too long.
  std::vector<std::int32_t> encode(std::string_view text, bool add_special_tokens = false) const;

  /// The text of the tokens, special ones left out unless `special_tokens` wants the texts that
  /// mean them; ids without a token give nothing, and bytes that are no UTF-8 become U+FFFD.
  std::string decode(std::span<const std::int32_t> ids, bool special_tokens = false) const;
  /// One token as the decoder takes it. With a byte-level decoder its bytes: possibly a part of a
  /// UTF-8 character. Empty for special tokens.
  std::string_view token_bytes(std::int32_t id) const;
  /// The text of a token in the middle of a text, of a special one the text that means it; it may
  /// be a part of a UTF-8 character. Empty where there is no such token.
  std::string text_in_middle(std::int32_t id) const;
  /// Whether it is a token, and not a special one.
  bool in_text(std::int32_t id) const;
  const Decoder& decoder() const;

  /// The text that means the token in a prompt, also for a special one; empty where there is no
  /// such token.
  std::string_view token_text(std::int32_t id) const;

  /// Ids from here on have no token and must never be sampled.
  std::int32_t size() const;
  /// No token covers more bytes of a text than this: n tokens cover at most n times as many.
  /// Nothing where there is no limit (a token may take all white space around it, say).
  std::optional<std::size_t> longest_token_bytes() const;
  /// A hash of all bytes that were read: equal for equal files.
  std::uint64_t fingerprint() const;

 private:
  struct State;
  explicit Tokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Turns tokens into text as they come. All that has come out after `finish` is what `decode` makes
/// of the same tokens. Only whole UTF-8 characters come out: an incomplete one is held back, and so
/// is a run of byte tokens (`<0xE2>`), which counts as a whole. Bytes that can never become valid
/// UTF-8 come out as U+FFFD.
class TextStream {
 public:
  /// `special_tokens` as `decode` has it.
  explicit TextStream(const Tokenizer& tokenizer, bool special_tokens = false)
      : tokenizer_(&tokenizer), decoder_(tokenizer.decoder()), special_tokens_(special_tokens) {}
  std::string push(std::int32_t id);
  /// What is still held back, as U+FFFD where incomplete; the next token begins another text.
  std::string finish();

 private:
  std::string take_whole_characters();

  const Tokenizer* tokenizer_;
  DecoderStream decoder_;
  bool special_tokens_;
  std::string pending_;
};

}  // namespace zi
