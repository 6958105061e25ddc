#pragma once

#include <string_view>

#include "chat/jinja/syntax.h"

namespace zi::chat {

/// Reads a template by Jinja2's grammar. Throws TemplateError with the line: for what is not valid,
/// for what is valid but not supported (`extends`, `include`, ..), by its name, and for what is
/// nested too deeply.
Body parse_template(std::string_view source);

}  // namespace zi::chat
