#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/generation_settings.h"

namespace zi {

/// One prompt as the user gave it. Exactly one of `text` and `ids` is set.
struct Prompt {
  std::uint64_t index = 0;  // order in the input, from 0: names the sequence everywhere
  std::string id;           // JSON value as text (`"a"`, `17`); the index where the file has none
  std::optional<std::string> text;
  std::optional<std::vector<std::int32_t>> ids;
  /// The tokens of `text`, where it was cut ahead of its need.
  std::optional<std::vector<std::int32_t>> text_ids;
  OwnSettings own;      // settings of its own, in place of the job's
  bool stream = false;  // each new token is told as it comes, not only the finished text
  /// The text comes from a chat template, which writes the special tokens itself: none are added.
  bool no_special_tokens = false;
  std::string chat_hash;  // of the messages and the template, where there were any
  std::string where;      // `prompts.jsonl:18` or `--prompt 2`, for messages

  /// Of its text, or of the ids that the user gave.
  std::size_t given_bytes() const {
    return text ? text->size() : ids->size() * sizeof(std::int32_t);
  }
  /// Compact bytes for the trip between ranks, and back (throws Error when damaged).
  std::string serialize() const;
  static Prompt deserialize(std::string_view bytes);
};

}  // namespace zi
