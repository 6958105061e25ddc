#pragma once

#include <string>
#include <string_view>

namespace zi::chat {

/// What stands between the quotes of a text in a template, with its escapes resolved as Python
/// does. `line` is for messages. Throws TemplateError for an escape that is no character.
std::string unescaped(std::string_view written, int line);

}  // namespace zi::chat
