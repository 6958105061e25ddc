#pragma once

#include <cstddef>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace zi {

/// JSON files come from anywhere: what is not plainly right is refused.

/// Text for a message: in backquotes, control characters replaced, at most about 120 characters.
std::string in_quotes(std::string_view text);

/// Parses `text`; `file` stands in messages. Throws CheckpointError for what is not JSON (NaN and
/// Infinity included), a root that is no object, deeper nesting than `max_depth` and repeated keys.
nlohmann::json parse_json_object(std::string_view text, const std::string& file,
                                 std::size_t max_depth);

/// The text of a file of at most `max_bytes`. Throws CheckpointError if it is missing or larger,
/// IoError if it cannot be read.
std::string read_text_file(const std::filesystem::path& path, std::size_t max_bytes);

}  // namespace zi
