#include "chat/values/number_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "chat/values/arithmetic.h"
#include "chat/values/python_text.h"
#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

std::string with_commas(const std::string& digits) {
  const std::size_t whole = std::min(digits.find_first_not_of("0123456789"), digits.size());
  std::string out;
  for (std::size_t i = 0; i < whole; ++i) {
    if (i > 0 && (whole - i) % 3 == 0) out += ',';
    out += digits[i];
  }
  return out + digits.substr(whole);
}

std::string sign_of(bool negative, const FormatSpec& spec) {
  return negative ? "-" : spec.sign == '\0' ? "" : std::string(1, spec.sign);
}

/// Without its sign.
std::string real_text(double value, const FormatSpec& spec) {
  const int precision = spec.precision < 0 ? 6 : spec.precision;
  value = std::abs(value);
  const char type = spec.type;
  if (spec.alternative) throw TemplateError("`#` in a format of a float is not supported");
  switch (type) {
    case 'f':
      return fmt::format("{:.{}f}", value, precision);
    case 'F':
      return fmt::format("{:.{}F}", value, precision);
    case 'e':
      return fmt::format("{:.{}e}", value, precision);
    case 'E':
      return fmt::format("{:.{}E}", value, precision);
    case 'g':
      return fmt::format("{:.{}g}", value, std::max(1, precision));
    case 'G':
      return fmt::format("{:.{}G}", value, std::max(1, precision));
    case '%':
      return fmt::format("{:.{}f}%", value * 100, precision);
    default:
      break;
  }
  if (spec.precision >= 0) throw TemplateError("a precision without a type is not supported");
  return repr_of(value);
}

}  // namespace

int read_number(std::string_view& rest, int most) {
  int number = 0;
  while (!rest.empty() && is_digit_byte(rest.front())) {
    number = number * 10 + (rest.front() - '0');
    if (number > most) {
      throw TemplateError(fmt::format("a width or precision above {} is not supported", most));
    }
    rest.remove_prefix(1);
  }
  return number;
}

std::string aligned(std::string body, std::string_view sign, const FormatSpec& spec, char absent,
                    Budget& budget) {
  const char align = spec.align == '\0' ? absent : spec.align;
  const auto size = static_cast<int>(count_points(body) + sign.size());
  const int missing = std::max(0, spec.width - size);
  budget.work(static_cast<std::size_t>(missing) * 4 + body.size());
  const auto fill = [&](int count) {
    std::string out;
    for (int i = 0; i < count; ++i) out += spec.fill;
    return out;
  };
  if (align == '=') return std::string(sign) + fill(missing) + body;
  body.insert(0, sign);
  if (align == '<') return body + fill(missing);
  if (align == '^') return fill(missing / 2) + body + fill(missing - missing / 2);
  return fill(missing) + body;
}

std::string number_text(const Value& value, const FormatSpec& spec, Budget& budget) {
  const bool integral = std::string_view("dixXobn").find(spec.type) != std::string_view::npos;
  const auto* const real = value.get<double>();
  if (real == nullptr && (spec.type == '\0' || integral)) {
    const std::int64_t number = *value.integer();
    if (spec.precision >= 0) {
      throw TemplateError("a precision for an integer is not supported");
    }
    const std::uint64_t size =
        number < 0 ? ~static_cast<std::uint64_t>(number) + 1 : static_cast<std::uint64_t>(number);
    std::string digits = fmt::to_string(size);
    std::string sign = sign_of(number < 0, spec);
    if (spec.type == 'x' || spec.type == 'X' || spec.type == 'o' || spec.type == 'b') {
      digits = spec.type == 'x'   ? fmt::format("{:x}", size)
               : spec.type == 'X' ? fmt::format("{:X}", size)
               : spec.type == 'o' ? fmt::format("{:o}", size)
                                  : fmt::format("{:b}", size);
      if (spec.alternative) sign += std::string("0") + spec.type;
    }
    if (spec.commas) digits = with_commas(digits);
    return aligned(std::move(digits), sign, spec, '>', budget);
  }
  if (real != nullptr && integral) {
    throw TemplateError(fmt::format("the format `{}` of a float", spec.type));
  }
  const double number = real_of(value);
  std::string digits = real_text(number, spec);
  if (spec.commas) digits = with_commas(digits);
  return aligned(std::move(digits), sign_of(std::signbit(number), spec), spec, '>', budget);
}

std::string cut(std::string text, int precision) {
  if (precision >= 0) text.resize(offset_of_point(text, static_cast<std::size_t>(precision)));
  return text;
}

}  // namespace zi::chat
