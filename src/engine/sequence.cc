#include "engine/sequence.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>
#include <utility>

namespace zi {

double Sequence::seconds_since_admission() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - admitted).count();
}

std::size_t Sequence::held_back() const {
  const std::string_view stoppable = std::string_view(text).substr(stops_from);
  std::size_t held = 0;
  for (const std::string& stop : settings.stop) {
    for (std::size_t n = std::min(stop.size() - 1, stoppable.size()); n > held; --n) {
      if (stoppable.ends_with(std::string_view(stop).substr(0, n))) held = n;
    }
  }
  return held;
}

std::span<const LogitBias> Sequence::bias() const {
  const bool may_end = new_tokens() >= settings.min_new_tokens;
  return std::span(biases).first(may_end ? own_biases : biases.size());
}

void Sequence::append_text(const std::string& more) {
  const std::size_t before = text.size();
  text += more;
  if (new_tokens() < settings.min_new_tokens) {
    stops_from = text.size();
    return;
  }
  std::size_t cut = std::string::npos;
  for (const std::string& stop : settings.stop) {  // each ends in what is new
    const std::size_t ahead = std::min(before, stop.size() - 1);
    cut = std::min(cut, text.find(stop, std::max(stops_from, before - ahead)));
  }
  if (cut == std::string::npos) return;
  text.resize(cut);
  finish_reason = "stop";
}

void Sequence::take_token(std::int32_t id, bool end_of_text) {
  if (new_tokens() == 0) first_token_seconds = seconds_since_admission();
  tokens.push_back(id);
  if (end_of_text) {
    finish_reason = "eos";
  } else if (new_tokens() >= max_new_tokens) {
    finish_reason = "length";
  }
  std::string more = stream.push(id);
  if (!finish_reason.empty()) more += stream.finish();
  append_text(more);
  ++delta.new_tokens;
  if (settings.logprobs && !logprobs.empty()) delta.logprobs.push_back(logprobs.back());
}

Delta Sequence::take_delta() {
  const bool first = delta.new_tokens > 0 && delta.new_tokens == new_tokens();
  const std::size_t shown = text.size() - (finish_reason.empty() ? held_back() : 0);
  if (shown > told) {
    delta.text = text.substr(told, shown - told);
    told = shown;
  }
  if (first) delta.prompt_logprobs = prompt_logprobs;
  return std::exchange(delta, {});
}

Result Sequence::take_result() {
  Result r;
  r.index = prompt.index;
  r.id = prompt.id;
  r.prompt = std::move(prompt_text);
  r.prompt_ids = std::move(prompt.ids);
  r.chat_hash = std::move(prompt.chat_hash);
  r.prompt_tokens = prompt_tokens;
  r.cached_tokens = cached_tokens;
  r.first_token_seconds = first_token_seconds;
  r.seconds = seconds_since_admission();
  r.text = std::move(text);
  r.token_ids.assign(tokens.begin() + prompt_tokens, tokens.end());
  r.finish_reason = std::move(finish_reason);
  if (settings.logprobs && !only_prompt()) r.logprobs = std::move(logprobs);
  if (settings.prompt_logprobs) r.prompt_logprobs = std::move(prompt_logprobs);
  return r;
}

}  // namespace zi
