#include "engine/generation_options.h"

namespace zi {

GenerationOptions GenerationOptions::from(const RunConfig& c) {
  GenerationOptions o;
  GenerationSettings& s = o.settings;
  s.max_new_tokens = c.max_new_tokens;
  s.temperature = static_cast<float>(c.temperature);
  s.top_k = static_cast<int>(c.top_k);
  s.top_p = static_cast<float>(c.top_p);
  s.repetition_penalty = static_cast<float>(c.repetition_penalty);
  s.seed = c.seed;
  s.stop = c.stop;
  s.ignore_eos = c.ignore_eos;
  if (c.logprobs > 0) s.logprobs = static_cast<int>(c.logprobs);
  o.score = c.score;
  o.share_prefixes = !c.no_prefix_sharing;
  o.special_tokens = !c.no_special_tokens;
  return o;
}

}  // namespace zi
