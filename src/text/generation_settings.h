#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "text/wire.h"

namespace zi {

/// As many new tokens as there is room for beside the prompt.
inline constexpr std::int64_t kAsManyAsFit = -1;
/// The most ids that a token's log-probabilities may be asked for beside its own.
inline constexpr int kMostLogprobs = 100;

/// How one sequence is drawn, and when it ends.
struct GenerationSettings {
  std::int64_t max_new_tokens = 100;  // or kAsManyAsFit; 0: only its prompt is computed
  std::int64_t min_new_tokens = 0;  // before these, neither an end-of-text token nor a stop ends it
  float temperature = 0;            // of these, see SampleRow
  int top_k = 0;
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::vector<std::pair<std::int32_t, float>> logit_bias;
  std::uint64_t seed = 0;
  /// Fixes the draws together with the seed; nothing: the prompt's index does.
  std::optional<std::uint64_t> draw_number;
  std::vector<std::string> stop;  // texts that end it, left out of its text
  bool ignore_eos = false;
  std::optional<int> logprobs;         // of new tokens, beside so many best ids of each place
  std::optional<int> prompt_logprobs;  // the same of the prompt's tokens, from the second one on
};

/// What a prompt says of its own generation. What it leaves out is the job's.
struct OwnSettings {
  std::optional<std::int64_t> max_new_tokens;
  std::optional<std::int64_t> min_new_tokens;
  std::optional<float> temperature;
  std::optional<int> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<float> presence_penalty;
  std::optional<float> frequency_penalty;
  std::vector<std::pair<std::int32_t, float>> logit_bias;
  std::optional<std::uint64_t> seed;
  std::optional<std::uint64_t> draw_number;
  std::optional<std::vector<std::string>> stop;
  std::optional<bool> ignore_eos;
  std::optional<int> logprobs;
  std::optional<int> prompt_logprobs;

  bool operator==(const OwnSettings&) const = default;

  /// `job` with what is said here in its place.
  GenerationSettings over(GenerationSettings job) const;
  void write(WireWriter& out) const;
  static OwnSettings read(WireReader& in);
};

}  // namespace zi
