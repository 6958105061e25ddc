#include "text/chat_prompt.h"

#include <fmt/format.h>

#include "base/json_file.h"
#include "chat/values/json_text.h"
#include "chat/values/template_error.h"
#include "text/chat_messages.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using chat::Dict;
using chat::Value;

const chat::Series& list(const Value& value, std::string_view key) {
  const chat::Series* const items = value.series();
  if (items == nullptr) throw PromptError(fmt::format("`{}` is not a list", key));
  return *items;
}

void check_messages(const Value& messages) {
  const chat::Series& items = list(messages, "messages");
  if (items.items.empty()) throw PromptError("`messages` is empty");
  for (std::size_t i = 0; i < items.items.size(); ++i) {
    const Dict* const message = items.items[i].dict();
    if (message == nullptr) {
      throw PromptError(fmt::format("`messages`[{}] is not an object", i));
    }
    const Value* const role = message->find("role");
    if (role == nullptr) throw PromptError(fmt::format("`messages`[{}] has no `role`", i));
    if (role->text() == nullptr) {
      throw PromptError(fmt::format("`messages`[{}]: `role` is not a text", i));
    }
  }
  check_contents(messages);
}

}  // namespace

ChatRequest parse_chat_line(std::string_view line) {
  Value object;
  try {
    object = chat::parse_json(line, kMostJsonNesting);
  } catch (const chat::TemplateError& error) {
    throw PromptError(error.what());
  }
  if (object.dict() == nullptr) throw PromptError("not a JSON object");
  const Dict& keys = *object.dict();
  const Value* const messages = keys.find("messages");
  if (messages == nullptr) throw PromptError("no `messages`");
  check_messages(*messages);
  ChatRequest request;
  request.messages = *messages;
  if (const Value* const tools = keys.find("tools"); tools != nullptr && !tools->is_none()) {
    const auto& items = list(*tools, "tools").items;
    for (std::size_t i = 0; i < items.size(); ++i) {
      if (items[i].dict() == nullptr)
        throw PromptError(fmt::format("`tools`[{}] is not an object", i));
    }
    request.tools = *tools;
  }
  if (const Value* const more = keys.find("chat_template_kwargs");
      more != nullptr && !more->is_none()) {
    if (more->dict() == nullptr) throw PromptError("`chat_template_kwargs` is not an object");
    for (const std::string_view own : {"messages", "tools"}) {
      if (more->dict()->find(own) == nullptr) continue;
      throw PromptError(
          fmt::format("`chat_template_kwargs` has `{}`, which is a key of the line", own));
    }
    request.arguments = *more->dict();
  }
  return request;
}

void set_chat(Prompt& prompt, const ChatRequest& request, const CheckpointChat& chat) {
  ChatRequest written = request;
  written.messages = messages_for_template(request, chat);
  prompt.text = chat.render(written);
  prompt.no_special_tokens = true;
  prompt.chat_hash = chat.hash(request);
  if (prompt.text->empty()) throw PromptError("the chat template gives an empty prompt");
}

}  // namespace zi
