#include "text/result.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "text/tidy_number.h"
#include "text/wire.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using Json = nlohmann::ordered_json;
constexpr char kDeltaKind = 'D';
constexpr char kResultKind = 'R';

Json to_json(const std::vector<TokenLogprob>& logprobs) {
  Json array = Json::array();
  for (const TokenLogprob& token : logprobs) {
    Json top = Json::array();
    for (const auto& [id, logprob] : token.top) top.push_back(Json::array({id, tidy(logprob)}));
    Json entry;
    entry["id"] = token.id;
    entry["logprob"] = tidy(token.logprob);
    entry["top"] = std::move(top);
    array.push_back(std::move(entry));
  }
  return array;
}

Json id_value(const Result& result) {
  if (result.id.empty()) return result.index;
  Json value = Json::parse(result.id, nullptr, false);
  return value.is_discarded() ? Json(result.id) : value;
}

void write(WireWriter& out, const std::vector<TokenLogprob>& logprobs) {
  out.put(static_cast<std::uint64_t>(logprobs.size()));
  for (const TokenLogprob& token : logprobs) token.write(out);
}

void write(WireWriter& out, const std::optional<std::vector<TokenLogprob>>& logprobs) {
  out.put(logprobs.has_value());
  if (logprobs) write(out, *logprobs);
}

std::vector<TokenLogprob> read_logprobs(WireReader& in) {
  return in.vector([&] { return TokenLogprob::read(in); });
}

}  // namespace

void TokenLogprob::write(WireWriter& out) const {
  out.put(id);
  out.put(logprob);
  out.put(static_cast<std::uint64_t>(top.size()));
  for (const auto& [best, of_best] : top) {
    out.put(best);
    out.put(of_best);
  }
}

TokenLogprob TokenLogprob::read(WireReader& in) {
  const auto id_and_logprob = [&] {
    const auto id = in.get<std::int32_t>();
    return std::pair(id, in.get<float>());
  };
  TokenLogprob token;
  std::tie(token.id, token.logprob) = id_and_logprob();
  token.top = in.vector(id_and_logprob);
  return token;
}

std::string Delta::serialize() const {
  WireWriter out(kDeltaKind);
  out.put(text);
  out.put(new_tokens);
  write(out, logprobs);
  write(out, prompt_logprobs);
  return out.take();
}

Delta Delta::deserialize(std::string_view bytes) {
  WireReader in(kDeltaKind, bytes);
  Delta delta;
  delta.text = in.text();
  delta.new_tokens = in.get<std::int64_t>();
  delta.logprobs = read_logprobs(in);
  delta.prompt_logprobs = read_logprobs(in);
  in.finish();
  return delta;
}

void Result::become_score() {
  token_logprobs.emplace();
  double sum = 0;
  for (const TokenLogprob& token : prompt_logprobs.value_or(std::vector<TokenLogprob>())) {
    token_logprobs->push_back(token.logprob);
    sum -= static_cast<double>(token.logprob);
  }
  perplexity = token_logprobs->empty()
                   ? std::numeric_limits<double>::quiet_NaN()
                   : std::exp(sum / static_cast<double>(token_logprobs->size()));
  prompt_logprobs.reset();
}

std::string Result::to_json() const {
  Json object;
  object["id"] = id_value(*this);
  object["rank"] = rank;
  object["prompt"] = prompt;
  if (prompt_ids) object["prompt_ids"] = *prompt_ids;
  if (!chat_hash.empty()) object["chat_hash"] = chat_hash;
  object["prompt_tokens"] = prompt_tokens;
  if (token_logprobs) {
    Json values = Json::array();
    for (const float logprob : *token_logprobs) values.push_back(tidy(logprob));
    object["token_logprobs"] = std::move(values);
    object["perplexity"] = perplexity;
  } else {
    object["text"] = text;
    object["token_ids"] = token_ids;
    object["finish_reason"] = finish_reason;
    if (logprobs) object["logprobs"] = zi::to_json(*logprobs);
    if (prompt_logprobs) object["prompt_logprobs"] = zi::to_json(*prompt_logprobs);
  }
  if (!settings.empty()) object["settings"] = Json::parse(settings);
  return object.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string Result::serialize() const {
  WireWriter out(kResultKind);
  out.put(index);
  out.put(id);
  out.put(rank);
  out.put(prompt);
  out.put(prompt_ids);
  out.put(chat_hash);
  out.put(prompt_tokens);
  out.put(cached_tokens);
  out.put(text);
  out.put(token_ids);
  out.put(finish_reason);
  write(out, logprobs);
  write(out, prompt_logprobs);
  out.put(token_logprobs);
  out.put(perplexity);
  out.put(settings);
  out.put(first_token_seconds);
  out.put(seconds);
  return out.take();
}

Result Result::deserialize(std::string_view bytes) {
  WireReader in(kResultKind, bytes);
  const auto number = [&] { return in.get<float>(); };
  Result result;
  result.index = in.get<std::uint64_t>();
  result.id = in.text();
  result.rank = in.get<int>();
  result.prompt = in.text();
  result.prompt_ids =
      in.optional([&] { return in.vector([&] { return in.get<std::int32_t>(); }); });
  result.chat_hash = in.text();
  result.prompt_tokens = in.get<std::int64_t>();
  result.cached_tokens = in.get<std::int64_t>();
  result.text = in.text();
  result.token_ids = in.vector([&] { return in.get<std::int32_t>(); });
  result.finish_reason = in.text();
  const auto logprobs = [&] { return read_logprobs(in); };
  result.logprobs = in.optional(logprobs);
  result.prompt_logprobs = in.optional(logprobs);
  result.token_logprobs = in.optional([&] { return in.vector(number); });
  result.perplexity = in.get<double>();
  result.settings = in.text();
  result.first_token_seconds = in.get<double>();
  result.seconds = in.get<double>();
  in.finish();
  return result;
}

}  // namespace zi
