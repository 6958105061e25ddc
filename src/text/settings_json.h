#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "text/generation_settings.h"

namespace zi {

/// Reads the members of a JSON object that have the same name and meaning in a line of prompts and
/// in a request of the OpenAI API: temperature, top_k, top_p, min_p, repetition_penalty,
/// presence_penalty, frequency_penalty, logit_bias ({"id": bias}), seed, stop (a text or a list),
/// ignore_eos. Null counts as left out. Throws PromptError naming a member of another type or out
/// of range. A seed sets the draw number too: the same seed gives the same text wherever the prompt
/// stands.
void read_settings(const nlohmann::json& object, OwnSettings& settings);

/// For read_count: no limit but that of the type.
inline constexpr std::int64_t kAnyCount = std::numeric_limits<std::int64_t>::max();

/// A whole number of the object from `least` to `most`; nothing where it is left out or null.
/// Throws PromptError naming the member.
std::optional<std::int64_t> read_count(const nlohmann::json& object, const char* key,
                                       std::int64_t least, std::int64_t most);

/// Names of the members that read_settings reads.
const std::vector<std::string>& setting_keys();

}  // namespace zi
