#include "chat/values/arithmetic.h"

#include <cmath>
#include <limits>

#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

[[noreturn]] void fail_size() { throw TemplateError("integers beyond 64 bits are not supported"); }
[[noreturn]] void fail_zero() { throw TemplateError("division by zero"); }

std::partial_ordering compare_mixed(std::int64_t a, double b) {
  if (std::isnan(b)) return std::partial_ordering::unordered;
  if (b >= 0x1p63) return std::partial_ordering::less;
  if (b < -0x1p63) return std::partial_ordering::greater;
  const auto whole = static_cast<std::int64_t>(std::floor(b));
  if (a != whole) return a <=> whole;
  return std::floor(b) < b ? std::partial_ordering::less : std::partial_ordering::equivalent;
}

std::int64_t power(std::int64_t base, std::int64_t exponent) {
  std::int64_t result = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) fail_size();
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) fail_size();
  }
  return result;
}

Value integers(std::string_view symbol, std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  if (symbol == "+") {
    if (__builtin_add_overflow(a, b, &result)) fail_size();
    return result;
  }
  if (symbol == "-") {
    if (__builtin_sub_overflow(a, b, &result)) fail_size();
    return result;
  }
  if (symbol == "*") {
    if (__builtin_mul_overflow(a, b, &result)) fail_size();
    return result;
  }
  if (symbol == "**") {
    if (b >= 0) return power(a, b);
    if (a == 0) fail_zero();
    return std::pow(static_cast<double>(a), static_cast<double>(b));
  }
  if (b == 0) fail_zero();
  if (symbol == "/") {
    constexpr std::int64_t kExact = std::int64_t{1} << 53;
    if (std::abs(static_cast<double>(a)) > kExact || std::abs(static_cast<double>(b)) > kExact) {
      throw TemplateError("divisions of integers beyond 53 bits are not supported");
    }
    return static_cast<double>(a) / static_cast<double>(b);
  }
  if (b == -1) {  // the one quotient that may not fit
    if (symbol == "%") return std::int64_t{0};
    if (a == std::numeric_limits<std::int64_t>::min()) fail_size();
    return -a;
  }
  const std::int64_t remainder = a % b;
  const bool towards_zero = remainder != 0 && (remainder < 0) != (b < 0);
  if (symbol == "%") return towards_zero ? remainder + b : remainder;
  return a / b - (towards_zero ? 1 : 0);
}

Value reals(std::string_view symbol, double a, double b) {
  if (symbol == "+") return a + b;
  if (symbol == "-") return a - b;
  if (symbol == "*") return a * b;
  if (symbol == "**") {
    if (a == 0 && b < 0) fail_zero();
    if (a < 0 && b != std::floor(b)) throw TemplateError("complex numbers are not supported");
    const double result = std::pow(a, b);
    if (std::isinf(result) && std::isfinite(a) && std::isfinite(b)) {
      throw TemplateError("the power of a float is too large");
    }
    return result;
  }
  if (b == 0) fail_zero();
  if (symbol == "/") return a / b;
  double remainder = std::fmod(a, b);
  if (remainder != 0) {
    if ((remainder < 0) != (b < 0)) remainder += b;
  } else {
    remainder = std::copysign(0.0, b);
  }
  if (symbol == "%") return remainder;
  const double quotient = (a - remainder) / b;
  const double whole = std::floor(quotient);
  return quotient == 0 ? std::copysign(0.0, a / b) : quotient - whole > 0.5 ? whole + 1 : whole;
}

}  // namespace

bool is_number(const Value& value) {
  return value.integer().has_value() || value.get<double>() != nullptr;
}

double real_of(const Value& number) {
  const auto integer = number.integer();
  return integer ? static_cast<double>(*integer) : *number.get<double>();
}

std::partial_ordering compare_numbers(const Value& a, const Value& b) {
  const auto x = a.integer();
  const auto y = b.integer();
  if (x && y) return *x <=> *y;
  if (x) return compare_mixed(*x, *b.get<double>());
  if (y) return 0 <=> compare_mixed(*y, *a.get<double>());
  return *a.get<double>() <=> *b.get<double>();
}

Value binary_numbers(std::string_view symbol, const Value& a, const Value& b) {
  const auto x = a.integer();
  const auto y = b.integer();
  return x && y ? integers(symbol, *x, *y) : reals(symbol, real_of(a), real_of(b));
}

}  // namespace zi::chat
