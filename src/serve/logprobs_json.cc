#include "serve/logprobs_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "base/utf8.h"

namespace zi {
namespace {

constexpr double kImpossible = -9999;  // as other servers write it: JSON has no infinity

double written(float logprob) { return std::max(shortest(logprob), kImpossible); }

std::span<const std::pair<std::int32_t, float>> best(const TokenLogprob& token, int top) {
  return std::span(token.top).first(
      std::min(token.top.size(), static_cast<std::size_t>(std::max(top, 0))));
}

std::int64_t characters(std::string_view text) {
  return std::ranges::count_if(
      text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; });
}

Json bytes_of(std::string_view text) {
  Json bytes = Json::array();
  for (const char c : text) bytes.push_back(static_cast<unsigned char>(c));
  return bytes;
}

Json chat_token(const Tokenizer& tokenizer, std::int32_t id, float logprob, bool as_id) {
  Json token;
  token["token"] = token_name(tokenizer, id, as_id);
  token["logprob"] = written(logprob);
  token["bytes"] = bytes_of(tokenizer.text_in_middle(id));
  return token;
}

}  // namespace

std::string token_name(const Tokenizer& tokenizer, std::int32_t id, bool as_id) {
  if (as_id) return fmt::format("token_id:{}", id);
  std::string text = tokenizer.text_in_middle(id);
  if (!first_invalid_utf8(text)) return text;
  std::string name = "bytes:";
  for (const char c : text) {
    fmt::format_to(std::back_inserter(name), "\\x{:02x}", static_cast<unsigned char>(c));
  }
  return name;
}

void CompletionLogprobs::add_token(std::int32_t id) {
  tokens_.push_back(token_name(*tokenizer_, id, as_ids_));
  text_offset_.push_back(offset_);
  offset_ += characters(text_.push(id));
}

void CompletionLogprobs::add_prompt(std::span<const std::int32_t> ids,
                                    std::span<const TokenLogprob> logprobs, int top) {
  if (ids.empty()) return;
  add_token(ids.front());
  token_logprobs_.push_back(nullptr);
  top_logprobs_.push_back(nullptr);
  add(logprobs, top);
}

void CompletionLogprobs::add(std::span<const TokenLogprob> logprobs, int top) {
  for (const TokenLogprob& token : logprobs) {
    Json tops = Json::object();
    for (const auto& [id, logprob] : best(token, top)) {
      tops[token_name(*tokenizer_, id, as_ids_)] = written(logprob);
    }
    // The token itself is always among them, as in the OpenAI API.
    tops[token_name(*tokenizer_, token.id, as_ids_)] = written(token.logprob);
    add_token(token.id);
    token_logprobs_.push_back(written(token.logprob));
    top_logprobs_.push_back(std::move(tops));
  }
}

Json CompletionLogprobs::take() {
  Json taken;
  const auto move_out = [&](const char* key, Json& list) {
    taken[key] = std::move(list);
    list = Json::array();
  };
  move_out("tokens", tokens_);
  move_out("token_logprobs", token_logprobs_);
  move_out("top_logprobs", top_logprobs_);
  move_out("text_offset", text_offset_);
  return taken;
}

Json chat_logprobs(const Tokenizer& tokenizer, std::span<const TokenLogprob> logprobs, int top,
                   bool as_ids) {
  Json content = Json::array();
  for (const TokenLogprob& token : logprobs) {
    Json entry = chat_token(tokenizer, token.id, token.logprob, as_ids);
    entry["top_logprobs"] = Json::array();
    for (const auto& [id, logprob] : best(token, top)) {
      entry["top_logprobs"].push_back(chat_token(tokenizer, id, logprob, as_ids));
    }
    content.push_back(std::move(entry));
  }
  return Json{{"content", std::move(content)}};
}

Json prompt_logprobs(const Tokenizer& tokenizer, std::span<const TokenLogprob> logprobs, int top) {
  Json all = Json::array({nullptr});
  for (const TokenLogprob& token : logprobs) {
    Json place = Json::object();
    const auto add = [&](std::int32_t id, float logprob, Json rank) {
      Json entry;
      entry["logprob"] = written(logprob);
      entry["rank"] = std::move(rank);
      entry["decoded_token"] = token_name(tokenizer, id, false);
      place.emplace(fmt::format("{}", id), std::move(entry));
    };
    std::int64_t rank = 0;
    for (const auto& [id, logprob] : best(token, top)) add(id, logprob, ++rank);
    add(token.id, token.logprob, nullptr);  // unless it is there
    all.push_back(std::move(place));
  }
  return all;
}

}  // namespace zi
