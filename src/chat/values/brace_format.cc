#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/printable_text.h"
#include "chat/values/arithmetic.h"
#include "chat/values/number_format.h"
#include "chat/values/operators.h"
#include "chat/values/percent_format.h"
#include "chat/values/python_text.h"
#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

FormatSpec read_brace(std::string_view written) {
  FormatSpec spec;
  std::string_view rest = written;
  constexpr std::string_view kAligns = "<>=^";
  if (!rest.empty()) {
    const std::size_t first = offset_of_point(rest, 1);
    if (first < rest.size() && kAligns.find(rest[first]) != std::string_view::npos) {
      spec.fill = std::string(rest.substr(0, first));
      spec.align = rest[first];
      rest.remove_prefix(first + 1);
    } else if (kAligns.find(rest.front()) != std::string_view::npos) {
      spec.align = rest.front();
      rest.remove_prefix(1);
    }
  }
  const auto take = [&rest](char c) {
    if (!rest.starts_with(c)) return false;
    rest.remove_prefix(1);
    return true;
  };
  if (take('+')) {
    spec.sign = '+';
  } else if (take(' ')) {
    spec.sign = ' ';
  } else {
    take('-');
  }
  spec.alternative = take('#');
  if (take('0') && spec.align == '\0') {
    spec.align = '=';
    spec.fill = "0";
  }
  spec.width = read_number(rest, kMostWidth);
  spec.commas = take(',');
  if (take('.')) spec.precision = read_number(rest, kMostPrecision);
  if (!rest.empty()) {
    spec.type = rest.front();
    rest.remove_prefix(1);
  }
  if (!rest.empty() || (spec.type != '\0' && std::string_view("sdxXobfFeEgG%").find(spec.type) ==
                                                 std::string_view::npos)) {
    throw TemplateError(fmt::format("the format {} is not supported", in_quotes(written)));
  }
  return spec;
}

std::string brace_field(const FormatSpec& spec, const Value& value, Budget& budget) {
  const bool as_number = is_number(value) && value.get<bool>() == nullptr;
  if (as_number && spec.type != 's') return number_text(value, spec, budget);
  if (value.get<bool>() != nullptr && spec.type != '\0' && spec.type != 's') {
    return number_text(*value.integer(), spec, budget);
  }
  if (as_number || (spec.type != '\0' && spec.type != 's') || spec.align == '=' || spec.commas ||
      spec.sign != '\0' || spec.alternative) {
    fail_type("this format does not work for", value);
  }
  if (value.text() == nullptr && (spec.width > 0 || spec.type == 's')) {
    fail_type("a format with a width does not work for", value);
  }
  return aligned(cut(to_text(value, budget), spec.precision), "", spec, '<', budget);
}

/// Hands out the arguments that fields ask for.
class Fields {
 public:
  Fields(const Arguments& arguments, Budget& budget) : arguments_(arguments), budget_(budget) {}

  std::string text_of(std::string_view field) {
    const std::size_t colon = std::min(field.find(':'), field.size());
    std::string_view name = field.substr(0, colon);
    const std::string_view format =
        colon < field.size() ? field.substr(colon + 1) : std::string_view();
    char conversion = '\0';
    if (name.size() >= 2 && name[name.size() - 2] == '!') {
      conversion = name.back();
      name.remove_suffix(2);
    }
    Value value = named(name);
    if (conversion == 'r') {
      value = budget_.text(repr(value, budget_));
    } else if (conversion == 's') {
      value = budget_.text(to_text(value, budget_));
    } else if (conversion != '\0') {
      throw TemplateError(fmt::format("the conversion {} is not supported",
                                      in_quotes(std::string{'!', conversion})));
    }
    if (format.empty()) return to_text(value, budget_);
    return brace_field(read_brace(format), value, budget_);
  }

 private:
  Value named(std::string_view name) {
    const bool numbered = !name.empty() && std::ranges::all_of(name, is_digit_byte);
    if (name.empty() || numbered) {
      const int kind = name.empty() ? 1 : 2;
      if (kind_ != 0 && kind_ != kind) {
        throw TemplateError("a format has fields with and without numbers");
      }
      kind_ = kind;
      std::size_t at = next_;
      if (name.empty()) {
        ++next_;
      } else {
        std::from_chars(name.data(), name.data() + name.size(), at);
      }
      if (at >= arguments_.values.size()) throw TemplateError("a format has too few arguments");
      return arguments_.values[at];
    }
    for (const auto& [key, value] : arguments_.named) {
      if (key == name) return value;
    }
    if (name.find_first_of(".[{") != std::string_view::npos) {
      throw TemplateError(
          fmt::format("the field {} of a format is not supported", in_quotes(name)));
    }
    throw TemplateError(fmt::format("a format has no argument {}", in_quotes(name)));
  }

  const Arguments& arguments_;
  Budget& budget_;
  std::size_t next_ = 0;
  int kind_ = 0;  // 1: numbered by their order, 2: by themselves
};

}  // namespace

Value brace_format(const Text& format, const Arguments& arguments, Budget& budget) {
  if (format.safe) {
    throw TemplateError("`format` of a text that is marked as safe is not supported");
  }
  Fields fields(arguments, budget);
  std::string out;
  std::string_view rest = format.text;
  budget.work(rest.size());
  while (!rest.empty()) {
    const std::size_t at = std::min(rest.find_first_of("{}"), rest.size());
    out += rest.substr(0, at);
    budget.check(out.size());
    rest.remove_prefix(at);
    if (rest.empty()) break;
    const char bracket = rest.front();
    if (rest.size() > 1 && rest[1] == bracket) {
      out += bracket;
      rest.remove_prefix(2);
      continue;
    }
    const std::size_t end = rest.find('}');
    if (bracket == '}' || end == std::string_view::npos) {
      throw TemplateError("a single bracket in a format");
    }
    out += fields.text_of(rest.substr(1, end - 1));
    rest.remove_prefix(end + 1);
  }
  return budget.text(std::move(out));
}

}  // namespace zi::chat
