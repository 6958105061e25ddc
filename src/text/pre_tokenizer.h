#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/pattern.h"
#include "text/split_budget.h"

namespace zi {

/// SentencePiece's way with spaces: a mark in place of each, and one before a word without.
struct Metaspace {
  enum class Prepend { kAlways, kFirst, kNever };  // kFirst: at the beginning of the text alone
  std::string mark;                                // one character
  Prepend prepend = Prepend::kAlways;
  bool split = true;  // each mark begins a piece
};

/// One step of the pre-tokenizer, applied to every piece of the step before: one of these.
struct PreTokenizerStep {
  bool prefix_space = false;  // first: put a space before a piece without one
  std::optional<Pattern> split;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;
  std::optional<Metaspace> metaspace;
};

using PreTokenizer = std::vector<PreTokenizerStep>;

/// Calls `piece` for each piece of `text` (valid UTF-8), in order. `first`: the prompt begins with
/// it. Views live as long as the call. Throws as Regex::find does.
void pre_tokenize(const PreTokenizer& steps, std::string_view text, bool first, SplitBudget& budget,
                  const Piece& piece);

}  // namespace zi
