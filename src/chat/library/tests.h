#pragma once

#include <string>
#include <string_view>

#include "chat/values/budget.h"
#include "chat/values/value.h"

namespace zi::chat {

/// `value is name`, as Jinja2 defines it.
using Test = bool (*)(const Value& value, const Arguments& arguments, Budget& budget);

/// Null where there is none.
Test find_test(std::string_view name);
/// What to say of a name that has no test here.
std::string unknown_test(std::string_view name);

}  // namespace zi::chat
