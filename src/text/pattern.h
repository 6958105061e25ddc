#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "text/split_budget.h"

namespace zi {

/// A pattern of Oniguruma over UTF-8 in its default syntax (that of the reference's engine).
/// Immutable: any thread may search with it.
class Regex {
 public:
  /// Throws CheckpointError with the engine's reason.
  explicit Regex(const std::string& pattern);

  using Match = std::function<void(std::size_t begin, std::size_t end)>;
  /// Calls `match` for each match in order, empty ones too, as the reference's iterator gives them.
  /// `text` is valid UTF-8. Throws PromptError where the budget is spent, and where the engine
  /// gives up (its limits on retries and memory).
  void find(std::string_view text, SplitBudget& budget, const Match& match) const;

 private:
  // The engine's OnigRegex; its header cannot be included together with <regex.h>.
  struct Free {
    void operator()(void* regex) const;
  };
  std::unique_ptr<void, Free> regex_;
  std::string pattern_;
};

/// What is searched for in a text: a regular expression, or a text as it stands.
class Pattern {
 public:
  /// Throws as Regex does.
  static Pattern regex(const std::string& pattern);
  /// `text` is not empty.
  static Pattern literal(std::string text);

  /// Null where it is a regular expression.
  const std::string* literal_text() const { return regex_ ? nullptr : &literal_; }
  /// As Regex::find.
  void find(std::string_view text, SplitBudget& budget, const Regex::Match& match) const;

 private:
  std::optional<Regex> regex_;
  std::string literal_;
};

/// What becomes of the matches when a text is split (the reference's SplitDelimiterBehavior).
enum class SplitBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

using Piece = std::function<void(std::string_view)>;

/// Calls `piece` for each piece of `text`, in order, none of them empty. With `invert` matches and
/// gaps between matches change their roles. Throws as Regex::find does.
void split_by(const Pattern& pattern, SplitBehavior behavior, bool invert, std::string_view text,
              SplitBudget& budget, const Piece& piece);

/// How GPT-2 cuts text into words, for ByteLevel with `use_regex` (Radford et al. 2019).
extern const char* const kGpt2Pattern;

}  // namespace zi
