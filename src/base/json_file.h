#pragma once

#include <cstddef>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/printable_text.h"

namespace zi {

/// The files of a checkpoint come from anywhere: anything that is not clearly valid is refused.

/// What no file of a checkpoint and no prompt needs more of.
inline constexpr std::size_t kMostJsonNesting = 64;

/// Parses `text`; `file` is for messages. Throws CheckpointError for what is not JSON (NaN and
/// Infinity included), a root that is not an object, deeper nesting than `max_depth` and repeated
/// keys.
nlohmann::json parse_json_object(std::string_view text, const std::string& file,
                                 std::size_t max_depth = kMostJsonNesting);

/// The text of a file of at most `max_bytes`. Throws CheckpointError if it is missing, no file,
/// larger, or a Git LFS pointer, and IoError if it cannot be read.
std::string read_text_file(const std::filesystem::path& path, std::size_t max_bytes);

/// Throws CheckpointError if a file that starts with `start` is a Git LFS pointer: what a clone
/// without `git lfs` has in place of a large file. No JSON and no safetensors file starts like it.
void refuse_lfs_pointer(std::string_view start, const std::string& file);

}  // namespace zi
