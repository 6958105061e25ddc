#include "text/pre_tokenizer.h"

#include <fmt/format.h>
#include <oniguruma.h>

#include <algorithm>
#include <new>
#include <span>

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

void isolate_literal(std::string_view literal, std::string_view text, SplitBudget& budget,
                     const Regex::Piece& piece) {
  while (!text.empty()) {
    budget.check();
    const std::size_t at = text.find(literal);
    if (at != 0) piece(text.substr(0, at));
    if (at == std::string_view::npos) return;
    piece(text.substr(at, literal.size()));
    text.remove_prefix(at + literal.size());
  }
}

void run_steps(std::span<const PreTokenizerStep> steps, std::string_view text, SplitBudget& budget,
               const Regex::Piece& piece) {
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
    run_steps(steps.subspan(1), part, budget, piece);
  };
  if (step.split) {
    step.split->isolate(text, budget, next);
  } else if (!step.literal.empty()) {
    isolate_literal(step.literal, text, budget, next);
  } else {
    next(text);
  }
}

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

void Regex::isolate(std::string_view text, SplitBudget& budget, const Piece& piece) const {
  const MatchParam param;
  const Region region;
  std::size_t from = 0;     // where the next search begins
  std::size_t covered = 0;  // everything before has been given out
  // As the reference's iterator does it: of the empty matches after a match that was not empty, the
  // first does not cut.
  bool skip_empty = false;
  while (from <= text.size()) {
    const int result = search(static_cast<OnigRegex>(regex_.get()), text, from, budget, param.param,
                              region.region);
    if (result == ONIG_MISMATCH) break;
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
    if (match_begin > covered) piece(text.substr(covered, match_begin - covered));
    if (match_end > match_begin) piece(text.substr(match_begin, match_end - match_begin));
    covered = match_end;
  }
  if (covered < text.size()) piece(text.substr(covered));
}

void pre_tokenize(const PreTokenizer& steps, std::string_view text, SplitBudget& budget,
                  const std::function<void(std::string_view)>& piece) {
  if (!text.empty()) run_steps(steps, text, budget, piece);
}

}  // namespace zi
