#pragma once

#include <string>
#include <string_view>

#include "chat/values/budget.h"
#include "chat/values/value.h"

namespace zi::chat {

/// json.dumps() as the `tojson` filter of transformers calls it.
struct JsonStyle {
  bool ascii = false;  // everything beyond ASCII as \uXXXX
  std::string indent;  // of one level; see `indented`
  bool indented = false;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sorted = false;
};
/// Throws TemplateError for what JSON has not.
std::string to_json(const Value& value, const JsonStyle& style, Budget& budget);

/// The value of a JSON text, objects in their order. Of keys that are there twice the last one
/// counts. Throws TemplateError for what is not JSON, for more than `most_depth` levels, and for
/// integers beyond 64 bits.
Value parse_json(std::string_view text, int most_depth);

}  // namespace zi::chat
