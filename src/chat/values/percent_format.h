#pragma once

#include <string>
#include <string_view>

#include "chat/values/budget.h"
#include "chat/values/value.h"

namespace zi::chat {

/// `text % values` of Python, with %s %r %d %i %u %f %e %g %x %o %c, flags, width and precision.
/// Throws TemplateError where Python fails, and for anything else by name.
Value percent_format(const Text& format, const Value& values, Budget& budget);

/// `text.format(..)`: `{}`, `{0}` and `{name}`, each with `!r` or `!s` and a format such as `:>8`,
/// `:05d` or `:.2f`. Attributes and items of fields are refused.
Value brace_format(const Text& format, const Arguments& arguments, Budget& budget);

}  // namespace zi::chat
