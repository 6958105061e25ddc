#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "chat/values/budget.h"
#include "chat/values/value.h"

namespace zi::chat {

/// What Python's operators and built-in functions give. Each throws TemplateError where Python
/// raises an exception, or where the result is not supported, by name.

bool truth(const Value& value);
/// str() and repr().
std::string to_text(const Value& value, Budget& budget);
std::string repr(const Value& value, Budget& budget);
bool equal(const Value& a, const Value& b, Budget& budget);
/// a < b.
bool less(const Value& a, const Value& b, Budget& budget);
/// One of == != < <= > >= in, `not in`.
bool compare(std::string_view symbol, const Value& a, const Value& b, Budget& budget);
/// Whether `part` is in `whole`.
bool contains(const Value& whole, const Value& part, Budget& budget);
/// One of + - * / // % **.
Value binary(std::string_view symbol, const Value& a, const Value& b, Budget& budget);
Value unary(std::string_view symbol, const Value& a);
/// len().
std::int64_t length(const Value& value);
/// The items that iteration gives: characters, keys, .. A generator is empty after it.
std::vector<Value> items_of(const Value& value, Budget& budget);
/// value[begin:end:step]; undefined or none where a bound is missing.
Value slice(const Value& value, const Value& begin, const Value& end, const Value& step,
            Budget& budget);
/// value[index], without what its names mean as attributes. Nothing where there is no such item.
std::optional<Value> item(const Value& value, const Value& index, Budget& budget);

/// Throws for a value that has no value: `'x' is undefined`.
[[noreturn]] void fail_undefined(const Value& value);
/// "unsupported operand: .."
[[noreturn]] void fail_type(std::string_view what, const Value& value);

}  // namespace zi::chat
