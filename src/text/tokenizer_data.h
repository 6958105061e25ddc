#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer.h"

namespace zi {

/// What the files of a tokenizer say.
struct TokenizerData {
  Bpe bpe;
  PreTokenizer pre_tokenizer;
  AddedTokens verbatim;                            // searched in the whole text,
  AddedTokens normalized;                          // then these in what is left
  std::vector<std::string> token_bytes;            // by id; empty: special, or no such token
  std::map<std::int32_t, std::string> added_text;  // by id, of added tokens
  std::size_t longest_token_bytes = 1;
  std::uint64_t fingerprint = 0;
};

/// Throws CheckpointError with the file and the reason: not JSON, something missing or
/// inconsistent, or a feature that is not supported and would change ids.
TokenizerData parse_tokenizer(const TokenizerFiles& files);

}  // namespace zi
