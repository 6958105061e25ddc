#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/split_budget.h"

namespace zi {

/// A pattern of Oniguruma over UTF-8 in its default syntax (that of the reference's engine).
/// Immutable: any thread may search with it.
class Regex {
 public:
  /// Throws CheckpointError with the engine's reason.
  explicit Regex(const std::string& pattern);

  using Piece = std::function<void(std::string_view)>;
  /// Calls `piece` for each match and for each maximal gap between matches, in order, none of them
  /// empty. `text` is valid UTF-8. Throws PromptError where the budget is spent, and where the
  /// engine gives up (its limits on retries and memory).
  void isolate(std::string_view text, SplitBudget& budget, const Piece& piece) const;

 private:
  // The engine's OnigRegex; its header cannot be included together with <regex.h>.
  struct Free {
    void operator()(void* regex) const;
  };
  std::unique_ptr<void, Free> regex_;
  std::string pattern_;
};

/// One step of the pre-tokenizer, applied to every piece of the step before.
struct PreTokenizerStep {
  std::unique_ptr<const Regex> split;  // pieces are its matches and gaps
  std::string literal;                 // or this text's occurrences and gaps
  bool prefix_space = false;           // first: put a space before a piece without one
};

using PreTokenizer = std::vector<PreTokenizerStep>;

/// Calls `piece` for each piece of `text` (valid UTF-8), in order. Views live as long as the call.
/// Throws as Regex::isolate does.
void pre_tokenize(const PreTokenizer& steps, std::string_view text, SplitBudget& budget,
                  const std::function<void(std::string_view)>& piece);

/// How GPT-2 cuts text into words, for ByteLevel with `use_regex` (Radford et al. 2019).
extern const char* const kGpt2Pattern;

}  // namespace zi
