#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/pattern.h"
#include "text/split_budget.h"
#include "text/unicode.h"

namespace zi {

/// One step of the normalizer: one of these.
struct NormalizerStep {
  std::optional<UnicodeForm> form;
  std::string prepend;             // put before a text that is not empty
  std::optional<Pattern> replace;  // its matches become `content`
  std::string content;
};

using Normalizer = std::vector<NormalizerStep>;

/// The text after all steps. Throws as Regex::find does, and PromptError where the text grows
/// beyond all measure.
std::string normalize(const Normalizer& steps, std::string_view text, SplitBudget& budget);

/// How many bytes of a text one byte of the normalized text can stand for; nothing where there is
/// no limit.
std::optional<std::size_t> most_shrinking(const Normalizer& steps);

}  // namespace zi
