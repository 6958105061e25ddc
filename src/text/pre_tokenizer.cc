#include "text/pre_tokenizer.h"

#include <fmt/format.h>

#include <new>
#include <span>

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
  return {reinterpret_cast<const char*>(message), static_cast<std::size_t>(length)};
}

/// Once for the process, before the first pattern; static initialisation is thread-safe.
void initialise_engine() {
  static const int result = [] {
    OnigEncoding encodings[] = {ONIG_ENCODING_UTF8};
    return onig_initialize(encodings, 1);
  }();
  if (result != ONIG_NORMAL) throw Error("Oniguruma does not start: " + reason(result, nullptr));
}

/// Limits of one search. Patterns of tokenizers look a few times at each byte, and keep an entry of
/// the stack for each character of a match; a hostile one must end with an error, and neither with
/// hours nor with the machine's memory.
constexpr unsigned long kRetriesPerByte = 32;
constexpr unsigned long kMostRetriesBesides = 1'000'000;
constexpr unsigned int kMostStack = 8'000'000;

struct MatchParam {
  OnigMatchParam* param = onig_new_match_param();
  explicit MatchParam(std::size_t text_bytes) {
    const unsigned long most_retries = kMostRetriesBesides + kRetriesPerByte * text_bytes;
    if (param == nullptr) throw std::bad_alloc();
    onig_initialize_match_param(param);
    onig_set_match_stack_limit_size_of_match_param(param, kMostStack);
    onig_set_retry_limit_in_match_of_match_param(param, most_retries);
    onig_set_retry_limit_in_search_of_match_param(param, most_retries);
  }
  ~MatchParam() { onig_free_match_param(param); }
  MatchParam(const MatchParam&) = delete;
  MatchParam& operator=(const MatchParam&) = delete;
};

struct Region {
  OnigRegion* region = onig_region_new();
  Region() {
    if (region == nullptr) throw std::bad_alloc();
  }
  ~Region() { onig_region_free(region, 1); }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
};

void isolate_literal(std::string_view literal, std::string_view text, const Regex::Piece& piece) {
  while (!text.empty()) {
    const std::size_t at = text.find(literal);
    if (at != 0) piece(text.substr(0, at));
    if (at == std::string_view::npos) return;
    piece(text.substr(at, literal.size()));
    text.remove_prefix(at + literal.size());
  }
}

void run_steps(std::span<const PreTokenizerStep> steps, std::string_view text,
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
  const auto next = [&](std::string_view part) { run_steps(steps.subspan(1), part, piece); };
  if (step.split) {
    step.split->isolate(text, next);
  } else if (!step.literal.empty()) {
    isolate_literal(step.literal, text, next);
  } else {
    next(text);
  }
}

}  // namespace

Regex::Regex(const std::string& pattern) : pattern_(pattern) {
  initialise_engine();
  OnigRegex raw = nullptr;
  OnigErrorInfo info{};
  const int result = onig_new(&raw, bytes_of(pattern), bytes_of(pattern) + pattern.size(),
                              ONIG_OPTION_NONE, ONIG_ENCODING_UTF8, ONIG_SYNTAX_ONIGURUMA, &info);
  if (result != ONIG_NORMAL) {
    throw CheckpointError(fmt::format("the regular expression `{}` is not one of Oniguruma's: {}",
                                      pattern, reason(result, &info)));
  }
  regex_.reset(raw);
}

void Regex::isolate(std::string_view text, const Piece& piece) const {
  const MatchParam limits(text.size());
  const Region region;
  const OnigUChar* const begin = bytes_of(text);
  const OnigUChar* const end = begin + text.size();
  std::size_t from = 0;     // where the next search begins
  std::size_t covered = 0;  // everything before has been given out
  // As the reference's iterator does it: of the empty matches after a match that was not empty, the
  // first does not cut.
  bool skip_empty = false;
  while (from <= text.size()) {
    const int result = onig_search_with_param(regex_.get(), begin, end, begin + from, end,
                                              region.region, ONIG_OPTION_NONE, limits.param);
    if (result == ONIG_MISMATCH) break;
    if (result < 0) {
      throw PromptError(
          fmt::format("the tokenizer's pattern `{}` cannot split this text of {} bytes: {}",
                      pattern_, text.size(), reason(result, nullptr)));
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

void pre_tokenize(const PreTokenizer& steps, std::string_view text,
                  const std::function<void(std::string_view)>& piece) {
  if (!text.empty()) run_steps(steps, text, piece);
}

}  // namespace zi
