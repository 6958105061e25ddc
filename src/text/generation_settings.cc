#include "text/generation_settings.h"

namespace zi {
namespace {

template <typename T>
void replace(T& value, const std::optional<T>& own) {
  if (own) value = *own;
}

}  // namespace

GenerationSettings OwnSettings::over(GenerationSettings s) const {
  replace(s.max_new_tokens, max_new_tokens);
  replace(s.min_new_tokens, min_new_tokens);
  replace(s.temperature, temperature);
  replace(s.top_k, top_k);
  replace(s.top_p, top_p);
  replace(s.min_p, min_p);
  replace(s.repetition_penalty, repetition_penalty);
  replace(s.presence_penalty, presence_penalty);
  replace(s.frequency_penalty, frequency_penalty);
  if (!logit_bias.empty()) s.logit_bias = logit_bias;
  replace(s.seed, seed);
  if (draw_number) s.draw_number = draw_number;
  replace(s.stop, stop);
  replace(s.ignore_eos, ignore_eos);
  if (logprobs) s.logprobs = logprobs;
  if (prompt_logprobs) s.prompt_logprobs = prompt_logprobs;
  return s;
}

void OwnSettings::write(WireWriter& out) const {
  out.put(max_new_tokens);
  out.put(min_new_tokens);
  out.put(temperature);
  out.put(top_k);
  out.put(top_p);
  out.put(min_p);
  out.put(repetition_penalty);
  out.put(presence_penalty);
  out.put(frequency_penalty);
  out.put(static_cast<std::uint64_t>(logit_bias.size()));
  for (const auto& [id, bias] : logit_bias) {
    out.put(id);
    out.put(bias);
  }
  out.put(seed);
  out.put(draw_number);
  out.put(stop);
  out.put(ignore_eos);
  out.put(logprobs);
  out.put(prompt_logprobs);
}

OwnSettings OwnSettings::read(WireReader& in) {
  const auto count = [&] { return in.get<std::int64_t>(); };
  const auto real = [&] { return in.get<float>(); };
  const auto integer = [&] { return in.get<int>(); };
  const auto number = [&] { return in.get<std::uint64_t>(); };
  OwnSettings s;
  s.max_new_tokens = in.optional(count);
  s.min_new_tokens = in.optional(count);
  s.temperature = in.optional(real);
  s.top_k = in.optional(integer);
  s.top_p = in.optional(real);
  s.min_p = in.optional(real);
  s.repetition_penalty = in.optional(real);
  s.presence_penalty = in.optional(real);
  s.frequency_penalty = in.optional(real);
  s.logit_bias = in.vector([&] {
    const auto id = in.get<std::int32_t>();
    return std::pair(id, in.get<float>());
  });
  s.seed = in.optional(number);
  s.draw_number = in.optional(number);
  s.stop = in.optional([&] { return in.vector([&] { return in.text(); }); });
  s.ignore_eos = in.optional([&] { return in.get<bool>(); });
  s.logprobs = in.optional(integer);
  s.prompt_logprobs = in.optional(integer);
  return s;
}

}  // namespace zi
