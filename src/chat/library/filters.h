#pragma once

#include <string>
#include <string_view>

#include "chat/values/budget.h"
#include "chat/values/value.h"

namespace zi::chat {

/// A filter, as Jinja2 and transformers (`tojson`) define it.
using Filter = Value (*)(const Value& value, const Arguments& arguments, Budget& budget);

/// Null where there is none, or where it is not supported.
Filter find_filter(std::string_view name);
/// What to say of a name that has no filter here.
std::string unknown_filter(std::string_view name);

/// The filters of text and numbers, and those of sequences and dicts.
Filter find_text_filter(std::string_view name);
Filter find_sequence_filter(std::string_view name);
/// map, select, reject, selectattr and rejectattr: they call other filters and tests.
Filter find_mapping_filter(std::string_view name);

/// The item of an item at a path such as `function.name` or `0.name`; `absent`, where there is one,
/// takes the place of each item that is undefined.
Value at_path(const Value& value, const Value& path, Budget& budget, const Value* absent = nullptr);

}  // namespace zi::chat
