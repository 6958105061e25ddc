#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/decoder.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer_files.h"

namespace zi {

/// What the post-processor puts around the tokens of a text.
struct PostProcessor {
  std::vector<std::int32_t> before;
  std::vector<std::int32_t> after;
};

/// What the files of a tokenizer say.
struct TokenizerData {
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Bpe bpe;
  PostProcessor post_processor;
  Decoder decoder;
  AddedTokens verbatim;                            // searched in the whole text,
  AddedTokens normalized;                          // then these in what is left, normalized
  std::vector<std::string> token_bytes;            // by id, as the decoder takes them
  std::vector<bool> in_text;                       // by id: a token, and not a special one
  std::map<std::int32_t, std::string> added_text;  // by id, of added tokens
  /// No token covers more bytes of a text than this; nothing where there is no limit.
  std::optional<std::size_t> longest_token_bytes = 1;
  std::uint64_t fingerprint = 0;
};

/// Throws CheckpointError with the file and the reason: not JSON, something missing or
/// inconsistent, or a feature that is not supported and would change ids.
TokenizerData parse_tokenizer(const TokenizerFiles& files);

}  // namespace zi
