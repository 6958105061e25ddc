#pragma once

#include "chat/chat_template.h"
#include "chat/values/value.h"

namespace zi {

/// Throws PromptError with the index of a message whose `content` is no text, list of text parts or
/// (a tool's answer) object. A message without any is left to the template.
void check_contents(const chat::Value& messages);

/// As the OpenAI API has it: throws PromptError where a message has no `content` and no tool calls,
/// or an object.
void require_contents(const chat::Value& messages);

/// The messages of a request in the form that its template expects. A `content` of text parts stays
/// a list where the template takes one from that role (see CheckpointChat::takes_parts); elsewhere
/// it becomes one text, its parts on lines of their own. `arguments` of tool calls, which the
/// OpenAI API writes as JSON in a text, become the object that they are (text that is none stays).
/// Expects what check_contents lets pass. Throws CheckpointError as CheckpointChat::render does.
chat::Value messages_for_template(const ChatRequest& request, const CheckpointChat& chat);

}  // namespace zi
