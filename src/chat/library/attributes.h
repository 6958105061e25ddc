#pragma once

#include <optional>
#include <string_view>

#include "chat/values/budget.h"
#include "chat/values/value.h"

namespace zi::chat {

/// `value.name`: a method, a field, or else the item of that name; undefined where there is none.
/// Throws TemplateError for what Python has and this has not, by name.
Value attribute(const Value& value, std::string_view name, Budget& budget);
/// `value[index]`: the item, or else the attribute of that name.
Value subscript(const Value& value, const Value& index, Budget& budget);

/// A method of a text, bound to it. Nothing where Python has none of this name.
std::optional<Value> text_method(const Value& text, std::string_view name, Budget& budget);
/// A field or a method of `loop`.
std::optional<Value> loop_field(const std::shared_ptr<Loop>& loop, std::string_view name,
                                Budget& budget);

/// The next item of a loop, which becomes the current one; nothing at its end.
std::optional<Value> advance(Loop& loop);

}  // namespace zi::chat
