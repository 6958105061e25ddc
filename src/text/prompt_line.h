#pragma once

#include <string_view>

#include "chat/chat_template.h"
#include "text/prompt.h"

namespace zi {

/// Parses one line of a prompt file; `index` and `where` are left alone, and `id` is empty where
/// the line has none. `chat` makes `messages` a text; without it they are refused. Throws
/// PromptError with the reason (not the place), and CheckpointError for `messages` where the model
/// has no template that can be used.
Prompt parse_prompt_line(std::string_view line, const CheckpointChat* chat = nullptr);

}  // namespace zi
