#include "chat/values/percent_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/printable_text.h"
#include "chat/values/arithmetic.h"
#include "chat/values/number_format.h"
#include "chat/values/operators.h"
#include "chat/values/python_text.h"
#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

FormatSpec read_percent(std::string_view& rest) {
  FormatSpec spec;
  for (; !rest.empty(); rest.remove_prefix(1)) {
    const char c = rest.front();
    if (c == '-') {
      spec.align = '<';
    } else if (c == '0') {
      if (spec.align == '\0') spec.align = '=';
      spec.fill = "0";
    } else if (c == '+' || (c == ' ' && spec.sign == '\0')) {
      spec.sign = c;
    } else if (c == '#') {
      spec.alternative = true;
    } else if (c != ' ') {
      break;
    }
  }
  if (spec.align == '<') spec.fill = " ";
  spec.width = read_number(rest, kMostWidth);
  if (rest.starts_with('.')) {
    rest.remove_prefix(1);
    spec.precision = read_number(rest, kMostPrecision);
  }
  if (!rest.empty() && (rest.front() == 'l' || rest.front() == 'h')) rest.remove_prefix(1);
  if (rest.empty()) throw TemplateError("an incomplete format");
  spec.type = rest.front();
  rest.remove_prefix(1);
  return spec;
}

std::string percent_field(FormatSpec spec, const Value& value, Budget& budget) {
  switch (spec.type) {
    case 's':
    case 'r':
      if (spec.fill == "0") {  // zeros are for numbers
        spec.fill = " ";
        spec.align = '>';
      }
      return aligned(
          cut(spec.type == 's' ? to_text(value, budget) : repr(value, budget), spec.precision), "",
          spec, '>', budget);
    case 'd':
    case 'i':
    case 'u':
      spec.type = 'd';
      if (const auto* real = value.get<double>()) {
        if (!(std::abs(*real) < 0x1p63)) throw TemplateError("`%d` of a float that is too large");
        return number_text(static_cast<std::int64_t>(*real), spec, budget);
      }
      [[fallthrough]];
    case 'x':
    case 'X':
    case 'o':
      if (!value.integer()) fail_type("a format of an integer for", value);
      return number_text(value, spec, budget);
    case 'e':
    case 'E':
    case 'f':
    case 'F':
    case 'g':
    case 'G':
      if (!is_number(value)) fail_type("a format of a number for", value);
      return number_text(value, spec, budget);
    default:
      throw TemplateError(
          fmt::format("the format {} is not supported", in_quotes(std::string{'%', spec.type})));
  }
}

}  // namespace

Value percent_format(const Text& format, const Value& values, Budget& budget) {
  if (format.safe) {
    throw TemplateError("`%` of a text that is marked as safe is not supported");
  }
  const Series* const s = values.series();
  const bool is_tuple = s != nullptr && s->type == Series::Type::kTuple;
  std::size_t used = 0;
  std::string out;
  std::string_view rest = format.text;
  budget.work(rest.size());
  while (!rest.empty()) {
    const std::size_t at = std::min(rest.find('%'), rest.size());
    out += rest.substr(0, at);
    budget.check(out.size());
    rest.remove_prefix(at);
    if (rest.empty()) break;
    rest.remove_prefix(1);
    if (rest.starts_with('%')) {
      out += '%';
      rest.remove_prefix(1);
      continue;
    }
    Value value;
    if (rest.starts_with('(')) {
      const std::size_t end = rest.find(')');
      if (end == std::string_view::npos || values.dict() == nullptr) {
        throw TemplateError("a format with names needs a dict");
      }
      budget.search(end);
      const Value* const found = values.dict()->find(rest.substr(1, end - 1));
      if (found == nullptr) {
        throw TemplateError(
            fmt::format("a format has no value for {}", in_quotes(rest.substr(1, end - 1))));
      }
      value = *found;
      rest.remove_prefix(end + 1);
      used = 1;
      out += percent_field(read_percent(rest), value, budget);
      continue;
    }
    const FormatSpec spec = read_percent(rest);
    if (used >= (is_tuple ? s->items.size() : 1)) {
      throw TemplateError("a format has too few values");
    }
    value = is_tuple ? s->items[used] : values;
    ++used;
    out += percent_field(spec, value, budget);
  }
  const bool spare =
      is_tuple ? used < s->items.size() : used == 0 && values.dict() == nullptr && s == nullptr;
  if (spare) throw TemplateError("not all values of a format are used");
  return budget.text(std::move(out));
}

}  // namespace zi::chat
