#include "engine/admission.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/printable_text.h"

namespace zi {

namespace {

constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();
/// A text of so many bytes is cut into tokens even if it cannot fit, to say how many they are.
constexpr std::size_t kCountedBytes = std::size_t{1} << 20;

}  // namespace

Admission::Admission(const Tokenizer& tokenizer, GenerationOptions options,
                     std::int64_t cached_tokens, std::size_t page_bytes)
    : tokenizer_(&tokenizer),
      options_(std::move(options)),
      positions_(options_.max_positions > 0 ? options_.max_positions : kNoLimit),
      cached_tokens_(cached_tokens),
      page_bytes_(page_bytes) {}

std::string Admission::advice(std::int64_t tokens, std::string_view otherwise) const {
  if (page_bytes_ == 0) return fmt::format("raise --kv-budget, or {}", otherwise);
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  const auto pages = static_cast<std::size_t>((tokens + kKvPageTokens - 1) / kKvPageTokens);
  return fmt::format("give --kv-budget {}MiB or more, or {}",
                     (pages * page_bytes_ + kMiB - 1) / kMiB, otherwise);
}

GenerationSettings Admission::settings_of(const Prompt& prompt) const {
  GenerationSettings settings = prompt.own.over(options_.settings);
  if (options_.score) {
    settings.max_new_tokens = 0;
    settings.logprobs.reset();
    settings.prompt_logprobs = settings.prompt_logprobs.value_or(0);
  }
  return settings;
}

std::int64_t Admission::least_new_tokens(const GenerationSettings& settings) const {
  const bool as_many_as_fit = settings.max_new_tokens == kAsManyAsFit;
  const std::int64_t new_tokens = as_many_as_fit ? 1 : settings.max_new_tokens;
  if (new_tokens < positions_) return new_tokens;
  throw PromptTooLong(
      fmt::format("{} new tokens leave no room for a prompt in the model's positions ({} tokens); "
                  "lower --max-new-tokens",
                  new_tokens, positions_),
      {0, new_tokens, room()});
}

std::vector<std::int32_t> Admission::encode(const Prompt& prompt) const {
  return encode(prompt, least_new_tokens(settings_of(prompt)));
}

std::vector<std::int32_t> Admission::encode(const Prompt& prompt, std::int64_t new_tokens) const {
  // Before it is cut into tokens, which may take long: n tokens cannot hold more bytes than this.
  // (Where there is no such limit, the tokens are counted afterwards.)
  const std::size_t bytes = prompt.text->size();
  const std::size_t longest = tokenizer_->longest_token_bytes().value_or(0);
  const auto least = static_cast<std::int64_t>(longest == 0 ? 0 : (bytes + longest - 1) / longest);
  const bool positions = least > positions_ - new_tokens;  // which no setting makes more
  if (positions || (least > cached_tokens_ - new_tokens && bytes > kCountedBytes)) {
    constexpr const char* kShorten = "shorten the prompt or --max-new-tokens";
    throw PromptTooLong(
        fmt::format("the prompt has {} bytes, which are {} tokens at least, and with {} new ones "
                    "they do not fit {} ({} tokens); {}",
                    bytes, least, new_tokens, positions ? "the model's positions" : "the KV cache",
                    positions ? positions_ : cached_tokens_,
                    positions ? kShorten : advice(least + new_tokens, kShorten)),
        {0, new_tokens, room()});
  }
  return tokenizer_->encode(*prompt.text, options_.special_tokens && !prompt.no_special_tokens);
}

void Admission::check_ids(const std::vector<std::int32_t>& ids) const {
  // The tokenizer's as well: it may know more tokens than the model has rows.
  for (const std::int32_t id : ids) {
    if (id >= 0 && id < options_.vocabulary) continue;
    const std::string_view text = tokenizer_->token_text(id);
    throw PromptError(
        fmt::format("token id {}{} is out of range: the model has ids 0 to {}", id,
                    text.empty() ? std::string() : fmt::format(" ({})", in_quotes(text)),
                    options_.vocabulary - 1));
  }
  if (ids.empty()) throw PromptError("the prompt is empty; give at least one token");
}

std::unique_ptr<Sequence> Admission::admit(Prompt prompt) const {
  auto s = std::make_unique<Sequence>(std::move(prompt), *tokenizer_);
  s->settings = settings_of(s->prompt);
  s->may_share = !s->settings.prompt_logprobs;  // they need the logits of every row
  s->max_new_tokens = least_new_tokens(s->settings);
  if (s->prompt.text_ids) {
    s->tokens = *std::exchange(s->prompt.text_ids, std::nullopt);
  } else {
    s->tokens = s->prompt.text ? encode(s->prompt, s->max_new_tokens) : *s->prompt.ids;
  }
  check_ids(s->tokens);
  s->prompt_text = s->prompt.text ? *s->prompt.text : tokenizer_->decode(s->tokens);
  s->prompt_tokens = static_cast<std::int64_t>(s->tokens.size());
  if (s->prompt_tokens > room() - s->max_new_tokens) {
    constexpr const char* kShorten = "shorten the prompt or --max-new-tokens";
    const bool positions = s->prompt_tokens > positions_ - s->max_new_tokens;
    throw PromptTooLong(
        fmt::format("{} prompt tokens and {} new ones do not fit {} ({} tokens); {}",
                    s->prompt_tokens, s->max_new_tokens,
                    positions ? "the model's positions" : "the KV cache",
                    positions ? positions_ : cached_tokens_,
                    positions ? kShorten : advice(s->prompt_tokens + s->max_new_tokens, kShorten)),
        {s->prompt_tokens, s->max_new_tokens, room()});
  }
  if (s->settings.max_new_tokens == kAsManyAsFit) s->max_new_tokens = room() - s->prompt_tokens;
  for (const auto& [id, value] : s->settings.logit_bias) {
    if (id >= options_.vocabulary) {
      throw PromptError(
          fmt::format("`logit_bias`: token id {} is out of range: the model has ids 0 "
                      "to {}",
                      id, options_.vocabulary - 1));
    }
    s->biases.push_back({id, value});
  }
  s->own_biases = s->biases.size();
  if (s->settings.min_new_tokens > 0 && !s->settings.ignore_eos) {
    constexpr float kNever = -std::numeric_limits<float>::infinity();
    for (const std::int32_t id : options_.eos_ids) s->biases.push_back({id, kNever});
  }
  return s;
}

}  // namespace zi
