#pragma once

#include <string>
#include <string_view>

#include "text/generation_settings.h"
#include "text/prompt.h"

namespace zi {

/// What the results of a job have in common, for `settings` of their lines.
struct RecordedJob {
  std::string model;  // `NAME@HASH`, see Engine::model_name; empty where nobody asked for it
  GenerationSettings settings;  // of prompts that say nothing else
  bool scored = false;
  bool special_tokens = true;  // with what the tokenizer's post-processor adds to a text
};

/// By what a prompt's result was made: the JSON object `settings` of its line, with the model, the
/// temperature, and all that differs from its default and changes the text. Left out is what cannot
/// change it (the seed of a greedy text), what may be changed on the way (limits of new tokens,
/// log-probabilities), and what changes no more than last bits (ranks, tiers, --compute-dtype).
std::string settings_record(const RecordedJob& job, const Prompt& prompt);

/// In what two records differ, the model left out, as `temperature 0.8 there and 0.5 here, seed 1
/// there and 2 here`; empty where they do not.
std::string describe_difference(std::string_view there, std::string_view here);

/// Whether both names are of the same model: they may call it differently.
bool same_model(std::string_view name, std::string_view other);

}  // namespace zi
