#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "text/added_tokens.h"
#include "text/token_files.h"
#include "text/tokenizer_files.h"

namespace zi {

/// What the reference (GPT2Tokenizer) makes of vocab.json, merges.txt and tokenizer_config.json.
struct Gpt2Files {
  nlohmann::json root;                    // as a tokenizer.json would say it
  std::vector<NamedToken> special{};      // that no file names, and that are special anyway
  std::optional<std::string> put_before;  // the token in front of each text (`add_bos_token`)
};

/// `files.merges` is there. Throws CheckpointError with the file.
Gpt2Files read_gpt2_files(const TokenizerFiles& files, const TokenizerSettings& settings);

}  // namespace zi
