#include "text/result.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "text/wire.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using Json = nlohmann::ordered_json;
constexpr char kResultKind = 'R';

/// The double whose shortest form is that of the float: `-0.1` and not `-0.10000000149011612`.
/// What is not finite becomes null when it is written.
double tidy(float value) {
  if (!std::isfinite(value)) return static_cast<double>(value);
  const std::string text = fmt::format("{}", value);
  double out = 0;
  std::from_chars(text.data(), text.data() + text.size(), out);
  return out;
}

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

}  // namespace

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
  }
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
  out.put(static_cast<char>(logprobs.has_value()));
  if (logprobs) {
    out.put(static_cast<std::uint64_t>(logprobs->size()));
    for (const TokenLogprob& token : *logprobs) {
      out.put(token.id);
      out.put(token.logprob);
      out.put(static_cast<std::uint64_t>(token.top.size()));
      for (const auto& [id, logprob] : token.top) {
        out.put(id);
        out.put(logprob);
      }
    }
  }
  out.put(token_logprobs);
  out.put(perplexity);
  return out.take();
}

Result Result::deserialize(std::string_view bytes) {
  WireReader in(kResultKind, bytes);
  const auto number = [&] { return in.get<float>(); };
  const auto id_and_logprob = [&] {
    const auto id = in.get<std::int32_t>();
    return std::pair(id, in.get<float>());
  };
  const auto token_logprob = [&] {
    TokenLogprob token;
    std::tie(token.id, token.logprob) = id_and_logprob();
    token.top = in.vector(id_and_logprob);
    return token;
  };
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
  result.logprobs = in.optional([&] { return in.vector(token_logprob); });
  result.token_logprobs = in.optional([&] { return in.vector(number); });
  result.perplexity = in.get<double>();
  in.finish();
  return result;
}

}  // namespace zi
