#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/generation_options.h"
#include "engine/sequence.h"
#include "text/tokenizer.h"

namespace zi {

/// Makes sequences of prompts, and refuses those that cannot be run. Any thread may use it.
class Admission {
 public:
  /// `cached_tokens`: of the longest sequence that the KV cache can hold.
  Admission(const Tokenizer& tokenizer, GenerationOptions options, std::int64_t cached_tokens);

  /// Throws PromptError: for what is no prompt of this model, or does not fit next to its new
  /// tokens.
  std::unique_ptr<Sequence> admit(Prompt prompt) const;

  /// How long a sequence can be, and why.
  struct Room {
    std::int64_t tokens;
    const char* of;    // what holds that many tokens
    const char* what;  // to do for more
  };
  const Room& room() const { return room_; }

 private:
  GenerationSettings settings_of(const Prompt& prompt) const;
  /// Its ids. Throws PromptError for a text that does not fit next to the new tokens.
  std::vector<std::int32_t> tokens_of(const Prompt& prompt, std::int64_t new_tokens) const;
  void check_ids(const std::vector<std::int32_t>& ids) const;

  const Tokenizer* tokenizer_;
  GenerationOptions options_;
  Room room_;
};

}  // namespace zi
