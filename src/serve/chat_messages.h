#pragma once

#include "chat/values/value.h"

namespace zi {

/// Messages as the OpenAI API has them in the form that chat templates expect: a `content` of text
/// parts becomes one text, its parts on lines of their own, and `arguments` of tool calls, which
/// the API writes as JSON in a text, become the object that they are (text that is none stays).
/// Throws PromptError where a message has another content, or none and no tool calls.
chat::Value messages_for_template(const chat::Value& messages);

}  // namespace zi
