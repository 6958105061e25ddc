#pragma once

#include <ctime>
#include <string>

#include "chat/jinja/syntax.h"

namespace zi::chat {

/// The text that a template gives for `variables`; `now` is for strftime_now. It ends within
/// seconds and in bounded memory (budget.h), whatever the template says. Throws TemplateError with
/// the line, and RaisedByTemplate for raise_exception.
std::string render(const Body& body, const Dict& variables, std::time_t now);

}  // namespace zi::chat
