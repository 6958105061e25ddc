#include "text/chat_messages.h"

#include <fmt/format.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/json_file.h"
#include "base/printable_text.h"
#include "chat/values/json_text.h"
#include "chat/values/template_error.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using chat::Dict;
using chat::Value;

Value with(const Dict& dict, std::string_view key, Value value) {
  auto changed = std::make_shared<Dict>(dict);
  changed->set(Value::text(std::string(key)), std::move(value));
  return std::shared_ptr<const Dict>(std::move(changed));
}

void check_part(const Value& part, std::size_t message) {
  if (part.text() != nullptr) return;
  const auto member = [&](std::string_view key) -> const std::string* {
    const Value* const value = part.dict() == nullptr ? nullptr : part.dict()->find(key);
    return value == nullptr || value->text() == nullptr ? nullptr : &value->text()->text;
  };
  const std::string* const type = member("type");
  if (type == nullptr) {
    throw PromptError(fmt::format("`messages`[{}]: a part of `content` has no `type`", message));
  }
  if (*type != "text") {
    throw PromptError(
        fmt::format("`messages`[{}]: a part of `content` is of the type {}; only text is supported",
                    message, in_quotes(*type)));
  }
  if (member("text") == nullptr) {
    throw PromptError(fmt::format(
        "`messages`[{}]: a part of `content` has no `text`, or one that is no text", message));
  }
}

const std::string& text_of_part(const Value& part) {
  return part.text() != nullptr ? part.text()->text : part.dict()->find("text")->text()->text;
}

Value joined(const chat::Series& parts) {
  std::string text;
  for (std::size_t i = 0; i < parts.items.size(); ++i) {
    if (i > 0) text += '\n';
    text += text_of_part(parts.items[i]);
  }
  return Value::text(std::move(text));
}

/// Parts that are bare texts as objects, which is what templates look for.
Value as_objects(const chat::Series& parts) {
  std::vector<Value> objects;
  for (const Value& part : parts.items) {
    objects.push_back(part.text() == nullptr ? part : chat::text_part(part.text()->text));
  }
  return Value::list(std::move(objects));
}

/// The call with its arguments as an object, or as it is.
Value with_object(const Value& call) {
  const Value* const function = call.dict() == nullptr ? nullptr : call.dict()->find("function");
  const Value* const arguments = function == nullptr || function->dict() == nullptr
                                     ? nullptr
                                     : function->dict()->find("arguments");
  if (arguments == nullptr || arguments->text() == nullptr) return call;
  try {
    Value object = chat::parse_json(arguments->text()->text, kMostJsonNesting);
    if (object.dict() == nullptr) return call;
    return with(*call.dict(), "function", with(*function->dict(), "arguments", std::move(object)));
  } catch (const chat::TemplateError&) {
    return call;
  }
}

}  // namespace

void check_contents(const Value& messages) {
  const auto& items = messages.series()->items;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const Value* const content = items[i].dict()->find("content");
    if (content == nullptr || content->is_none() || content->text() != nullptr) continue;
    if (content->series() != nullptr) {
      for (const Value& part : content->series()->items) check_part(part, i);
    } else if (content->dict() == nullptr) {
      throw PromptError(
          fmt::format("`messages`[{}]: `content` is neither a text nor a list of parts", i));
    }
  }
}

void require_contents(const Value& messages) {
  const auto& items = messages.series()->items;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const Value* const content = items[i].dict()->find("content");
    if (content == nullptr || content->is_none()) {
      if (items[i].dict()->find("tool_calls") != nullptr) continue;
      throw PromptError(fmt::format("`messages`[{}] has no `content`", i));
    }
    if (content->dict() == nullptr) continue;
    throw PromptError(
        fmt::format("`messages`[{}]: `content` is neither a text nor a list of parts", i));
  }
}

Value messages_for_template(const ChatRequest& request, const CheckpointChat& chat) {
  std::map<std::string, bool> takes_parts;  // by role
  std::vector<Value> changed;
  for (const Value& message : request.messages.series()->items) {
    Value made = message;
    const Value* const content = made.dict()->find("content");
    if (content != nullptr && content->series() != nullptr) {
      const std::string& role = made.dict()->find("role")->text()->text;
      auto found = takes_parts.find(role);
      if (found == takes_parts.end()) {
        found = takes_parts.emplace(role, chat.takes_parts(request, role)).first;
      }
      const chat::Series& parts = *content->series();
      made = with(*made.dict(), "content", found->second ? as_objects(parts) : joined(parts));
    }
    const Value* const calls = made.dict()->find("tool_calls");
    if (calls != nullptr && calls->series() != nullptr) {
      std::vector<Value> made_calls;
      for (const Value& call : calls->series()->items) made_calls.push_back(with_object(call));
      made = with(*made.dict(), "tool_calls", Value::list(std::move(made_calls)));
    }
    changed.push_back(std::move(made));
  }
  return Value::list(std::move(changed));
}

}  // namespace zi
