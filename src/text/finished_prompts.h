#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "text/prompt_source.h"

namespace zi {

/// What an output file says of a finished prompt.
struct FinishedPrompt {
  std::string prompt;
  std::int64_t prompt_tokens = 0;
};
/// By id (JSON text).
using FinishedPrompts = std::map<std::string, FinishedPrompt>;

/// The prompts of the whole lines in an output file, for --resume; empty if there is no file.
/// Throws PromptError naming a line that is not one of ours, also a cut last one, and IoError for
/// what is no regular file.
FinishedPrompts finished_prompts(const std::filesystem::path& path);

/// Leaves out prompts whose id is in `done`; `total` is less by their number. `take` throws
/// PromptError where the id is there with another prompt: the output belongs to other prompts.
std::unique_ptr<PromptSource> skip_done(std::unique_ptr<PromptSource> source, FinishedPrompts done);

}  // namespace zi
