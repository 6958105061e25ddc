#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/generation_options.h"
#include "engine/sequence.h"
#include "text/tokenizer.h"
#include "zero_infer/error.h"

namespace zi {

/// A prompt that does not fit next to its new tokens.
class PromptTooLong : public PromptError {
 public:
  struct Numbers {
    std::int64_t prompt_tokens;  // 0: it was not cut into tokens, being far too long
    std::int64_t new_tokens;     // that were asked for
    std::int64_t room;           // tokens that a sequence can have
  };
  PromptTooLong(const std::string& message, const Numbers& numbers)
      : PromptError(message), numbers_(numbers) {}
  const Numbers& numbers() const { return numbers_; }

 private:
  Numbers numbers_;
};

/// Makes sequences of prompts, and refuses those that cannot be run. Any thread may use it.
class Admission {
 public:
  /// `cached_tokens`: of the longest sequence that the KV cache can hold. `page_bytes`: of one of
  /// its pages, to say how large it would have to be; 0: that is not said.
  Admission(const Tokenizer& tokenizer, GenerationOptions options, std::int64_t cached_tokens,
            std::size_t page_bytes = 0);

  /// Throws PromptError for what is no prompt of this model, PromptTooLong for what does not fit
  /// next to its new tokens.
  std::unique_ptr<Sequence> admit(Prompt prompt) const;

  /// The tokens of its text, for `Prompt::text_ids`: `admit` need not cut it then. Throws as it
  /// does for a text that cannot be cut, or would be too long whatever its tokens are.
  std::vector<std::int32_t> encode(const Prompt& prompt) const;

  /// How many tokens a sequence can have.
  std::int64_t room() const { return std::min(positions_, cached_tokens_); }

 private:
  GenerationSettings settings_of(const Prompt& prompt) const;
  /// The fewest new tokens that a prompt must leave room for. Throws PromptTooLong where the
  /// model's positions have none for a prompt.
  std::int64_t least_new_tokens(const GenerationSettings& settings) const;
  /// Throws PromptTooLong for a text that cannot fit next to the new tokens.
  std::vector<std::int32_t> encode(const Prompt& prompt, std::int64_t new_tokens) const;
  void check_ids(const std::vector<std::int32_t>& ids) const;
  /// `--kv-budget 12MiB` for a sequence of so many tokens, with what else can be done.
  std::string advice(std::int64_t tokens, std::string_view otherwise) const;

  const Tokenizer* tokenizer_;
  GenerationOptions options_;
  std::int64_t positions_;  // of the model; very many where it has no limit
  std::int64_t cached_tokens_;
  std::size_t page_bytes_;
};

}  // namespace zi
