#include "text/pattern.h"

#include <fmt/format.h>
#define ONIG_ESCAPE_UCHAR_COLLISION  // ICU has a UChar of its own
#include <oniguruma.h>

#include <algorithm>
#include <new>
#include <utility>

#include "base/printable_text.h"
#include "base/utf8.h"
#include "zero_infer/error.h"

namespace zi {

const char* const kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

const OnigUChar* bytes_of(std::string_view text) {
  return reinterpret_cast<const OnigUChar*>(text.data());
}

std::string reason(int code, OnigErrorInfo* info) {
  OnigUChar message[ONIG_MAX_ERROR_MESSAGE_LEN];
  const int length = onig_error_code_to_str(message, code, info);
  return printable({reinterpret_cast<const char*>(message), static_cast<std::size_t>(length)});
}

/// Once for the process, before the first pattern; static initialisation is thread-safe.
void initialise_engine() {
  static const int result = [] {
    OnigEncoding encodings[] = {ONIG_ENCODING_UTF8};
    return onig_initialize(encodings, 1);
  }();
  if (result != ONIG_NORMAL)
    throw Error("Oniguruma could not be initialised: " + reason(result, nullptr));
}

/// Limits of one search. Patterns of tokenizers look a few times at each byte, and keep an entry of
/// the stack for each character of a match; a hostile one must end with an error, and must take
/// neither hours nor all of the machine's memory.
constexpr unsigned long kRetriesPerByte = 32;
constexpr unsigned long kMostRetriesBesides = 1'000'000;
constexpr unsigned int kMostStack = 8'000'000;
/// Retries of a search's first attempt. Nearly every search of a well-meant pattern needs fewer.
constexpr unsigned long kFirstRetries = 256;

struct MatchParam {
  OnigMatchParam* param = onig_new_match_param();
  MatchParam() {
    if (param == nullptr) throw std::bad_alloc();
    onig_initialize_match_param(param);
    onig_set_match_stack_limit_size_of_match_param(param, kMostStack);
  }
  ~MatchParam() { onig_free_match_param(param); }
  MatchParam(const MatchParam&) = delete;
  MatchParam& operator=(const MatchParam&) = delete;
};

bool retries_ran_out(int result) {
  return result == ONIGERR_RETRY_LIMIT_IN_MATCH_OVER ||
         result == ONIGERR_RETRY_LIMIT_IN_SEARCH_OVER;
}

struct Region {
  OnigRegion* region = onig_region_new();
  Region() {
    if (region == nullptr) throw std::bad_alloc();
  }
  ~Region() { onig_region_free(region, 1); }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
};

/// The result of onig_search from `from` on. The engine counts retries and not time, and a retry
/// may look at the whole text: so each further attempt has twice as many, as long as there is time.
int search(OnigRegex regex, std::string_view text, std::size_t from, SplitBudget& budget,
           OnigMatchParam* param, OnigRegion* region) {
  const OnigUChar* const begin = bytes_of(text);
  const OnigUChar* const end = begin + text.size();
  const unsigned long most_retries = kMostRetriesBesides + kRetriesPerByte * text.size();
  for (unsigned long retries = kFirstRetries;; retries *= 2) {
    budget.check();
    const unsigned long limit = std::min(retries, most_retries);
    onig_set_retry_limit_in_match_of_match_param(param, limit);
    onig_set_retry_limit_in_search_of_match_param(param, limit);
    const int result = onig_search_with_param(regex, begin, end, begin + from, end, region,
                                              ONIG_OPTION_NONE, param);
    if (!retries_ran_out(result) || retries >= most_retries) return result;
  }
}

/// Literal texts are searched for in windows of this many bytes, with a look at the budget before
/// each: a hostile one nearly matches at every byte.
constexpr std::size_t kWindow = 1 << 14;

void find_literal(std::string_view literal, std::string_view text, SplitBudget& budget,
                  const Regex::Match& match) {
  for (std::size_t from = 0; from + literal.size() <= text.size();) {
    budget.check();
    const std::size_t window = kWindow + literal.size() - 1;
    const std::size_t at = text.substr(from, window).find(literal);
    if (at == std::string_view::npos) {
      from += kWindow;
      continue;
    }
    match(from + at, from + at + literal.size());
    from += at + literal.size();
  }
}

/// Joins matches and gaps into pieces as they come.
class Splitter {
 public:
  Splitter(SplitBehavior behavior, std::string_view text, const Piece& piece)
      : behavior_(behavior), text_(text), piece_(&piece) {}

  /// The next stretch of the text, which begins where the one before ended.
  void add(std::size_t end, bool is_match) {
    if (!joins(is_match)) give();
    end_ = end;
    last_is_match_ = is_match;
    if (behavior_ == SplitBehavior::kRemoved && is_match) begin_ = end;
    any_ = true;
  }
  void give() {
    if (end_ > begin_) (*piece_)(text_.substr(begin_, end_ - begin_));
    begin_ = end_;
  }

 private:
  /// Whether a stretch belongs to the piece of the one before it.
  bool joins(bool is_match) const {
    if (!any_) return false;
    switch (behavior_) {
      case SplitBehavior::kMergedWithPrevious:
        return is_match && !last_is_match_;
      case SplitBehavior::kMergedWithNext:
        return !is_match && last_is_match_;
      case SplitBehavior::kContiguous:
        return is_match == last_is_match_;
      case SplitBehavior::kIsolated:
      case SplitBehavior::kRemoved:
        return false;
    }
    return false;
  }

  SplitBehavior behavior_;
  std::string_view text_;
  const Piece* piece_;
  std::size_t begin_ = 0;  // of the piece that is not given yet
  std::size_t end_ = 0;
  bool last_is_match_ = false;
  bool any_ = false;
};

}  // namespace

void Regex::Free::operator()(void* regex) const { onig_free(static_cast<OnigRegex>(regex)); }

Regex::Regex(const std::string& pattern) : pattern_(pattern) {
  initialise_engine();
  OnigRegex raw = nullptr;
  OnigErrorInfo info{};
  const int result = onig_new(&raw, bytes_of(pattern), bytes_of(pattern) + pattern.size(),
                              ONIG_OPTION_NONE, ONIG_ENCODING_UTF8, ONIG_SYNTAX_ONIGURUMA, &info);
  if (result != ONIG_NORMAL) {
    throw CheckpointError(fmt::format("the regular expression {} is not one of Oniguruma's: {}",
                                      in_quotes(pattern), reason(result, &info)));
  }
  regex_.reset(raw);
}

void Regex::find(std::string_view text, SplitBudget& budget, const Match& match) const {
  const MatchParam param;
  const Region region;
  std::size_t from = 0;  // where the next search begins
  // As the reference's iterator does it: of the empty matches after a match that was not empty, the
  // first does not count.
  bool skip_empty = false;
  while (from <= text.size()) {
    const int result = search(static_cast<OnigRegex>(regex_.get()), text, from, budget, param.param,
                              region.region);
    if (result == ONIG_MISMATCH) break;
    if (result == ONIGERR_MATCH_STACK_LIMIT_OVER) {
      throw PromptError(
          fmt::format("the tokenizer's pattern {} finds no place to split a stretch of about {} "
                      "million characters in this text of {} bytes; split it, with a space or a "
                      "line break",
                      in_quotes(pattern_), kMostStack / 1'000'000, text.size()));
    }
    if (result < 0) {
      throw PromptError(
          fmt::format("the tokenizer's pattern {} cannot split this text of {} bytes: {}",
                      in_quotes(pattern_), text.size(), reason(result, nullptr)));
    }
    const auto match_begin = static_cast<std::size_t>(region.region->beg[0]);
    const auto match_end = static_cast<std::size_t>(region.region->end[0]);
    from = match_end;
    if (match_begin == match_end) {
      from += from < text.size() ? utf8_front(text.substr(from)).bytes : 1;
      if (skip_empty) {
        skip_empty = false;
        continue;
      }
    } else {
      skip_empty = true;
    }
    match(match_begin, match_end);
  }
}

Pattern Pattern::regex(const std::string& pattern) {
  Pattern made;
  made.regex_.emplace(pattern);
  return made;
}

Pattern Pattern::literal(std::string text) {
  Pattern made;
  made.literal_ = std::move(text);
  return made;
}

void Pattern::find(std::string_view text, SplitBudget& budget, const Regex::Match& match) const {
  if (regex_) {
    regex_->find(text, budget, match);
  } else {
    find_literal(literal_, text, budget, match);
  }
}

void split_by(const Pattern& pattern, SplitBehavior behavior, bool invert, std::string_view text,
              SplitBudget& budget, const Piece& piece) {
  Splitter splitter(behavior, text, piece);
  std::size_t covered = 0;
  pattern.find(text, budget, [&](std::size_t begin, std::size_t end) {
    if (begin > covered) splitter.add(begin, invert);
    splitter.add(end, !invert);
    covered = end;
  });
  if (covered < text.size()) splitter.add(text.size(), invert);
  splitter.give();
}

}  // namespace zi
