#include "serve/chat_messages.h"

#include <fmt/format.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/json_file.h"
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

/// The text of a part; null where it has none.
const std::string* text_of_part(const Value& part) {
  if (part.text() != nullptr) return &part.text()->text;
  const Value* const text = part.dict() == nullptr ? nullptr : part.dict()->find("text");
  return text == nullptr || text->text() == nullptr ? nullptr : &text->text()->text;
}

/// Nothing where the content is no list of text parts.
std::optional<std::string> joined_parts(const Value& content) {
  if (content.series() == nullptr) return std::nullopt;
  std::string joined;
  bool first = true;
  for (const Value& part : content.series()->items) {
    const std::string* const text = text_of_part(part);
    if (text == nullptr) return std::nullopt;
    if (!std::exchange(first, false)) joined += '\n';
    joined += *text;
  }
  return joined;
}

std::string no_text(std::size_t message) {
  return fmt::format(
      "`messages`: the `content` of message {} is neither a text nor a list of parts "
      "with texts",
      message);
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

chat::Value messages_for_template(const chat::Value& messages) {
  std::vector<Value> changed;
  for (const Value& message : messages.series()->items) {
    Value made = message;
    const Value* const calls = made.dict()->find("tool_calls");
    const Value* const content = made.dict()->find("content");
    if (content == nullptr || content->is_none()) {
      if (calls == nullptr) throw PromptError(no_text(changed.size()));
    } else if (auto text = joined_parts(*content)) {
      made = with(*made.dict(), "content", Value::text(std::move(*text)));
    } else if (content->text() == nullptr) {
      throw PromptError(no_text(changed.size()));
    }
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
