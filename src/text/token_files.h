#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "text/added_tokens.h"
#include "text/tokenizer_files.h"

namespace zi {

/// Reads tokenizer.json (or vocab.json, which needs a merges.txt) and the files next to it. Throws
/// CheckpointError and IoError.
TokenizerFiles read_tokenizer_files(const std::filesystem::path& file);

/// The settings next to a tokenizer, parsed: an object without members stands for a file that is
/// not there.
struct TokenizerSettings {
  nlohmann::json config;              // tokenizer_config.json
  nlohmann::json special_tokens_map;  // empty, too, where the reference does not look into it

  /// Throws CheckpointError with the file.
  static TokenizerSettings parse(const TokenizerFiles& files);
};

/// Warns where tokenizer_config.json and tokenizer.json disagree on a first token
/// (`add_bos_token`): some classes of the reference take the one, some the other. Throws
/// CheckpointError with the file.
void compare_first_token(const TokenizerFiles& files, const TokenizerSettings& settings,
                         bool puts_one_before);

/// The tokens that tokenizer_config.json, special_tokens_map.json and added_tokens.json name, in
/// the order in which the reference adds them to those of tokenizer.json (`known`), with the flags
/// that it gives them. The reference is PreTrainedTokenizerFast.from_pretrained of
/// transformers 5.24; a token that 4.57 is known to treat otherwise is refused by its name. Throws
/// CheckpointError with the file.
std::vector<NamedToken> tokens_beside(const TokenizerFiles& files,
                                      const TokenizerSettings& settings,
                                      const AddedVocabulary& known);

}  // namespace zi
