#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "text/byte_alphabet.h"
#include "text/decoder.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer_data.h"

namespace zi {

/// The parts of a tokenizer.json around its model. Each is supported as the reference (Hugging Face
/// tokenizers 0.23) has it, or refused by its name with a CheckpointError. `node` is the value of
/// the part's key, null where there is none.

Normalizer parse_normalizer(const nlohmann::json& node);

struct PreTokenizerPart {
  PreTokenizer steps;
  bool byte_level = false;  // pieces become letters of the byte-level alphabet in the end
};
PreTokenizerPart parse_pre_tokenizer(const nlohmann::json& node);

PostProcessor parse_post_processor(const nlohmann::json& node);

struct DecoderPart {
  /// First, for each token alone: either texts are replaced in it, or it is made of bytes.
  Normalizer replacements;
  bool byte_level = false;
  Decoder steps;  // then, for all of them
};
DecoderPart parse_decoder(const nlohmann::json& node);

/// A token as the steps of the decoder take it. Throws PromptError where the budget is spent.
std::string decoded_token(const DecoderPart& part, const ByteAlphabet& alphabet,
                          const std::string& token, SplitBudget& budget);

}  // namespace zi
