#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "chat/chat_template.h"
#include "text/prompt.h"

namespace zi {

/// What a line {"messages": [..], "tools": [..], "chat_template_kwargs": {..}} asks for. Throws
/// PromptError for a line without messages, or with some that are none.
ChatRequest parse_chat_line(std::string_view line);

/// Makes the request a prompt's text, which has all its special tokens; see messages_for_template.
/// Throws PromptError where the template refuses it, and CheckpointError where there is no template
/// that can be used.
void set_chat(Prompt& prompt, const ChatRequest& request, const CheckpointChat& chat);

}  // namespace zi
