#include "text/tokenizer_parts.h"

#include <functional>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/utf8.h"
#include "text/json_members.h"

namespace zi {
namespace {

using nlohmann::json;

constexpr int kMostLevels = 8;
constexpr std::size_t kMostSteps = 32;
/// Texts that a part searches for or puts in. (A pattern is a regular expression of any length.)
constexpr std::size_t kMostTextBytes = 1024;

std::string type_of(const json& object, const char* what) {
  if (!object.is_object()) refuse("{} is {}, not an object", what, shown(object));
  const json& type = member(object, "type");
  if (!type.is_string()) refuse("{} has no `type`", what);
  return type.get<std::string>();
}

using Visit = std::function<void(const std::string& type, const json& node)>;

/// Calls `visit` for each part, those of Sequences one by one.
void each_part(const json& node, const char* what, const char* list, int depth, std::size_t& count,
               const Visit& visit) {
  const std::string type = type_of(node, what);
  if (depth > kMostLevels || ++count > kMostSteps) {
    refuse("{} has more than {} levels or {} steps", what, kMostLevels, kMostSteps);
  }
  if (type != "Sequence") {
    visit(type, node);
    return;
  }
  const json& inner = member(node, list);
  if (!inner.is_array()) refuse("the {} Sequence has no array `{}`", what, list);
  for (const json& part : inner) each_part(part, what, list, depth + 1, count, visit);
}

void each_part(const json& node, const char* what, const char* list, const Visit& visit) {
  std::size_t count = 0;
  if (!node.is_null()) each_part(node, what, list, 0, count, visit);
}

std::string text_of(const json& node, const char* key, const std::string& what) {
  const json& value = member(node, key);
  if (!value.is_string()) refuse("{} has no text `{}`", what, key);
  std::string text = value.get<std::string>();
  if (text.size() > kMostTextBytes) {
    refuse("{}: `{}` has {} bytes; {} are the most", what, key, text.size(), kMostTextBytes);
  }
  return text;
}

/// A text of exactly one character.
std::string character_of(const json& node, const char* key, const std::string& what) {
  std::string text = text_of(node, key, what);
  if (text.empty() || utf8_front(text).bytes != text.size()) {
    refuse("{}: `{}` is {}, not one character", what, key, in_quotes(text));
  }
  return text;
}

Pattern pattern_of(const json& node, const std::string& what) {
  const json& pattern = member(node, "pattern");
  if (const json& regex = member(pattern, "Regex"); regex.is_string()) {
    return Pattern::regex(regex.get<std::string>());
  }
  if (!member(pattern, "String").is_string()) {
    refuse("{} has neither a `Regex` nor a `String` as its pattern", what);
  }
  std::string text = text_of(pattern, "String", what);
  if (text.empty()) refuse("{} has an empty text as its pattern", what);
  return Pattern::literal(std::move(text));
}

NormalizerStep replacement_of(const json& node, const std::string& what) {
  NormalizerStep step;
  step.replace = pattern_of(node, what);
  step.content = text_of(node, "content", what);
  return step;
}

SplitBehavior behavior_of(const json& node, const std::string& what) {
  const json& behavior = member(node, "behavior");
  if (behavior == "Isolated") return SplitBehavior::kIsolated;
  if (behavior == "Removed") return SplitBehavior::kRemoved;
  if (behavior == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (behavior == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (behavior == "Contiguous") return SplitBehavior::kContiguous;
  refuse("{} with behavior {} is not supported", what, shown(behavior));
}

Metaspace metaspace_of(const json& node, const std::string& what) {
  Metaspace metaspace;
  metaspace.mark = character_of(node, "replacement", what);
  metaspace.split = flag(node, "split", true);
  // Files from before `prepend_scheme` have `add_prefix_space` instead.
  const json& scheme = member(node, "prepend_scheme");
  const bool prefix = flag(node, "add_prefix_space", true);
  if (scheme == "never" || (scheme.is_null() && !prefix)) {
    metaspace.prepend = Metaspace::Prepend::kNever;
  } else if (!prefix) {
    refuse("{} has `prepend_scheme` {} and no `add_prefix_space`", what, shown(scheme));
  } else if (scheme == "first") {
    metaspace.prepend = Metaspace::Prepend::kFirst;
  } else if (!scheme.is_null() && scheme != "always") {
    refuse("{} with `prepend_scheme` {} is not supported", what, shown(scheme));
  }
  return metaspace;
}

/// The id of `["<s>", 1]`, as `sep` and `cls` are written.
std::int32_t numbered_token(const json& node, const char* key, const std::string& what) {
  const json& pair = member(node, key);
  if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string()) {
    refuse("{}: `{}` is {}, not a token and its id", what, key, shown(pair));
  }
  return token_id(pair[1], pair[0].get<std::string>());
}

/// What a template for one text puts before and after it.
PostProcessor template_of(const json& node, const std::string& what) {
  PostProcessor around;
  const json& single = member(node, "single");
  if (!single.is_array()) refuse("{} has no array `single`", what);
  bool text = false;
  for (const json& piece : single) {
    const json& token = member(piece, "SpecialToken");
    if (token.is_null()) {
      if (text || member(member(piece, "Sequence"), "id") != "A") {
        refuse("{}: `single` should have the text `A` once and special tokens around it", what);
      }
      text = true;
      continue;
    }
    const std::string name = text_of(token, "id", what);
    const json& tokens = member(node, "special_tokens");
    const auto found = tokens.find(name);
    if (found == tokens.end() || !member(*found, "ids").is_array()) {
      refuse("{}: `special_tokens` has no `ids` for {}", what, in_quotes(name));
    }
    for (const json& id : (*found)["ids"]) {
      (text ? around.after : around.before).push_back(token_id(id, name));
      if (around.before.size() + around.after.size() > kMostTextBytes) {
        refuse("{} adds more than {} tokens", what, kMostTextBytes);
      }
    }
  }
  if (!text) refuse("{}: `single` does not have the text", what);
  return around;
}

}  // namespace

Normalizer parse_normalizer(const json& node) {
  Normalizer steps;
  each_part(node, "normalizer", "normalizers", [&](const std::string& type, const json& part) {
    const std::string what = "the normalizer " + in_quotes(type);
    NormalizerStep step;
    if (type == "NFC") {
      step.form = UnicodeForm::kNfc;
    } else if (type == "NFD") {
      step.form = UnicodeForm::kNfd;
    } else if (type == "NFKC") {
      step.form = UnicodeForm::kNfkc;
    } else if (type == "NFKD") {
      step.form = UnicodeForm::kNfkd;
    } else if (type == "Prepend") {
      step.prepend = text_of(part, "prepend", what);
    } else if (type == "Replace") {
      step = replacement_of(part, what);
    } else {
      refuse("{} is not supported (only Sequence, NFC, NFD, NFKC, NFKD, Prepend and Replace)",
             what);
    }
    steps.push_back(std::move(step));
  });
  return steps;
}

PreTokenizerPart parse_pre_tokenizer(const json& node) {
  PreTokenizerPart made;
  const Visit visit = [&](const std::string& type, const json& part) {
    const std::string what = "the pre_tokenizer " + in_quotes(type);
    if (made.byte_level) refuse("{} after ByteLevel is not supported", what);
    PreTokenizerStep step;
    if (type == "ByteLevel") {
      made.byte_level = true;
      step.prefix_space = flag(part, "add_prefix_space", true);
      if (flag(part, "use_regex", true)) step.split = Pattern::regex(kGpt2Pattern);
    } else if (type == "Split") {
      step.split = pattern_of(part, what);
      step.behavior = behavior_of(part, what);
      step.invert = flag(part, "invert", false);
    } else if (type == "Digits") {
      step.split = Pattern::regex(R"(\p{N})");
      const bool each = flag(part, "individual_digits", false);
      step.behavior = each ? SplitBehavior::kIsolated : SplitBehavior::kContiguous;
    } else if (type == "Metaspace") {
      step.metaspace = metaspace_of(part, what);
    } else {
      refuse("{} is not supported (only Sequence, Split, Digits, ByteLevel and Metaspace)", what);
    }
    made.steps.push_back(std::move(step));
  };
  each_part(node, "pre_tokenizer", "pretokenizers", visit);
  return made;
}

PostProcessor parse_post_processor(const json& node) {
  PostProcessor made;
  bool adds = false;
  const Visit visit = [&](const std::string& type, const json& part) {
    const std::string what = "the post_processor " + in_quotes(type);
    if (type == "ByteLevel") return;  // it changes offsets alone
    if (adds) refuse("{} after another one that adds tokens is not supported", what);
    adds = true;
    if (type == "TemplateProcessing") {
      made = template_of(part, what);
    } else if (type == "BertProcessing" || type == "RobertaProcessing") {
      made.before = {numbered_token(part, "cls", what)};
      made.after = {numbered_token(part, "sep", what)};
    } else {
      refuse(
          "{} may add tokens, which is not supported (only Sequence, ByteLevel, "
          "TemplateProcessing, BertProcessing and RobertaProcessing)",
          what);
    }
  };
  each_part(node, "post_processor", "processors", visit);
  return made;
}

DecoderPart parse_decoder(const json& node) {
  if (node.is_null()) {
    refuse("the decoder `null` is not supported: the reference puts a space between all tokens");
  }
  DecoderPart made;
  bool whole = false;  // the tokens have been joined
  const Visit visit = [&](const std::string& type, const json& part) {
    const std::string what = "the decoder " + in_quotes(type);
    if (whole && type != "Fuse" && type != "Strip") {
      refuse("{} after Fuse or ByteLevel is not supported", what);
    }
    DecoderStep step;
    if (type == "Fuse") {
      whole = true;
      return;
    }
    if (type == "ByteLevel" || type == "Replace") {
      if (!made.steps.empty()) {
        refuse("{} after ByteFallback, Metaspace or Strip is not supported", what);
      }
      if (type == "Replace") {
        made.replacements.push_back(replacement_of(part, what));
      } else {
        made.byte_level = whole = true;
      }
      return;
    }
    if (type == "ByteFallback") {
      step.kind = DecoderStep::Kind::kByteFallback;
    } else if (type == "Metaspace") {
      const Metaspace metaspace = metaspace_of(part, what);
      step.kind = DecoderStep::Kind::kMetaspace;
      step.character = metaspace.mark;
      step.prefixed = metaspace.prepend != Metaspace::Prepend::kNever;
    } else if (type == "Strip") {
      step.kind = DecoderStep::Kind::kStrip;
      step.character = character_of(part, "content", what);
      step.whole = whole;
      const json& start = member(part, "start");
      if (!start.is_number_unsigned() || start > kMostTextBytes || member(part, "stop") != 0) {
        refuse("{} with `start` {} and `stop` {} is not supported (only 0 to {}, and 0)", what,
               shown(start), shown(member(part, "stop")), kMostTextBytes);
      }
      step.count = start.get<std::size_t>();
      if (made.byte_level && step.character.size() > 1) {
        refuse("{} of {} after ByteLevel is not supported", what, in_quotes(step.character));
      }
    } else {
      refuse(
          "{} is not supported (only Sequence, ByteLevel, Replace, ByteFallback, Metaspace, Strip "
          "and Fuse)",
          what);
    }
    made.steps.push_back(std::move(step));
  };
  each_part(node, "decoder", "decoders", visit);
  return made;
}

std::string decoded_token(const DecoderPart& part, const ByteAlphabet& alphabet,
                          const std::string& token, SplitBudget& budget) {
  std::string text =
      part.replacements.empty() ? token : normalize(part.replacements, token, budget);
  return part.byte_level ? alphabet.decoded(text) : text;
}

}  // namespace zi
