#pragma once

#include <compare>

#include "chat/values/value.h"

namespace zi::chat {

/// bool, int or float.
bool is_number(const Value& value);
/// Of two numbers, exactly: 2^53 + 1 is more than 2.0^53.
std::partial_ordering compare_numbers(const Value& a, const Value& b);
double real_of(const Value& number);
/// + - * / // % ** of two numbers. Throws TemplateError for a division by zero, and for an integer
/// beyond 64 bits.
Value binary_numbers(std::string_view symbol, const Value& a, const Value& b);

}  // namespace zi::chat
