#pragma once

#include <filesystem>
#include <vector>

namespace zi {

/// The files of a model's directory that a loader of this or another program may read: weights of
/// any format, their indices, the settings and the tokenizer. Others, such as results that somebody
/// keeps there, are left out. Empty where the directory cannot be read.
std::vector<std::filesystem::path> checkpoint_files(const std::filesystem::path& directory);

}  // namespace zi
