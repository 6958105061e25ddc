#include "text/pre_tokenizer.h"

#include <span>

namespace zi {
namespace {

void split_at_spaces(const Metaspace& metaspace, std::string_view text, bool first,
                     SplitBudget& budget, const Piece& piece) {
  std::string marked;
  marked.reserve(text.size() + metaspace.mark.size());
  const bool wanted = metaspace.prepend == Metaspace::Prepend::kAlways ||
                      (metaspace.prepend == Metaspace::Prepend::kFirst && first);
  if (wanted && !text.starts_with(' ') && !text.starts_with(metaspace.mark)) {
    marked = metaspace.mark;
  }
  for (const char byte : text) {
    if (byte == ' ') {
      marked += metaspace.mark;
    } else {
      marked += byte;
    }
  }
  if (!metaspace.split) {
    piece(marked);
  } else {
    split_by(Pattern::literal(metaspace.mark), SplitBehavior::kMergedWithNext, false, marked,
             budget, piece);
  }
}

void run_steps(std::span<const PreTokenizerStep> steps, std::string_view text, bool first,
               SplitBudget& budget, const Piece& piece) {
  if (steps.empty()) {
    piece(text);
    return;
  }
  const PreTokenizerStep& step = steps.front();
  std::string prefixed;
  if (step.prefix_space && !text.starts_with(' ')) {
    prefixed = " ";
    prefixed += text;
    text = prefixed;
  }
  const auto next = [&](std::string_view part) {
    const bool at_front = step.behavior != SplitBehavior::kRemoved || part.data() == text.data();
    run_steps(steps.subspan(1), part, first && at_front, budget, piece);
    first = false;
  };
  if (step.metaspace) {
    split_at_spaces(*step.metaspace, text, first, budget, next);
  } else if (step.split) {
    split_by(*step.split, step.behavior, step.invert, text, budget, next);
  } else {
    next(text);
  }
}

}  // namespace

void pre_tokenize(const PreTokenizer& steps, std::string_view text, bool first, SplitBudget& budget,
                  const Piece& piece) {
  if (!text.empty()) run_steps(steps, text, first, budget, piece);
}

}  // namespace zi
