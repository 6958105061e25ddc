#include "text/normalizer.h"

#include <fmt/format.h>

#include <algorithm>

#include "zero_infer/error.h"

namespace zi {
namespace {

// NFKD makes 11 times as much of U+FDFA, which nothing known comes near.
constexpr std::size_t kMostGrowth = 32;
constexpr std::size_t kMostBytesBesides = std::size_t{64} << 10;

/// The forms shrink a text to a quarter at most: a mathematical letter has four bytes, and marks
/// that are composed go on in a character of no more than three.
constexpr std::size_t kMostShrinkingOfForms = 8;

std::string replaced(const NormalizerStep& step, std::string_view text, SplitBudget& budget,
                     const auto& check_size) {
  std::string out;
  out.reserve(text.size());
  std::size_t covered = 0;
  step.replace->find(text, budget, [&](std::size_t begin, std::size_t end) {
    out += text.substr(covered, begin - covered);
    out += step.content;
    covered = end;
    check_size(out.size());
  });
  out += text.substr(covered);
  return out;
}

}  // namespace

std::string normalize(const Normalizer& steps, std::string_view text, SplitBudget& budget) {
  const std::size_t most = text.size() * kMostGrowth + kMostBytesBesides;
  const auto check_size = [&](std::size_t bytes) {
    if (bytes <= most) return;
    throw PromptError(
        fmt::format("the tokenizer's normalizer makes more than {} bytes of this text of {}", most,
                    text.size()));
  };
  std::string out(text);
  for (const NormalizerStep& step : steps) {
    budget.check();
    if (step.form) {
      out = unicode_form(out, *step.form);
    } else if (step.replace) {
      out = replaced(step, out, budget, check_size);
    } else if (!out.empty()) {
      out.insert(0, step.prepend);
    }
    check_size(out.size());
  }
  return out;
}

std::optional<std::size_t> most_shrinking(const Normalizer& steps) {
  std::size_t most = 1;
  for (const NormalizerStep& step : steps) {
    if (step.form) {
      most *= kMostShrinkingOfForms;
    } else if (step.replace) {
      const std::string* const literal = step.replace->literal_text();
      if (literal == nullptr || step.content.empty()) return std::nullopt;
      most *= std::max<std::size_t>(1, (literal->size() - 1) / step.content.size() + 1);
    }
    if (most > kMostBytesBesides) return std::nullopt;
  }
  return most;
}

}  // namespace zi
