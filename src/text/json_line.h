#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace zi {

/// A line that must be one JSON object of valid UTF-8, nested no deeper than 64 and with each key
/// once. Throws PromptError with the reason and the byte.
nlohmann::json parse_json_line(std::string_view line);

/// The `id` of a line as canonical JSON text; empty where there is none. Throws PromptError where
/// it is neither a string nor an integer.
std::string id_of(const nlohmann::json& object);

}  // namespace zi
