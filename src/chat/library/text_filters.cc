#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <unordered_map>

#include "chat/library/filters.h"
#include "chat/library/parameters.h"
#include "chat/values/arithmetic.h"
#include "chat/values/json_text.h"
#include "chat/values/operators.h"
#include "chat/values/percent_format.h"
#include "chat/values/python_text.h"
#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

bool is_safe(const Value& value) { return value.text() != nullptr && value.text()->safe; }

std::string text_of(const Value& value, Budget& budget) { return to_text(value, budget); }

Value trim(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("trim", arguments, {"chars"});
  const std::string text = text_of(value, budget);
  const auto characters = p.text(0);
  if (characters) budget.work(text.size() * std::min<std::size_t>(characters->size(), 1u << 16));
  return budget.text(std::string(strip(text, Side::kBoth, characters)), is_safe(value));
}

template <std::string (*kChange)(std::string_view)>
Value change(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("a filter of case", arguments, {});
  const std::string text = text_of(value, budget);
  budget.work(text.size() * 16);
  budget.check(text.size() * 8);
  return budget.text(kChange(text), is_safe(value));
}

/// The filter begins words behind more characters than the method does.
std::string title_words(std::string_view text) {
  std::string out;
  std::string_view word;
  const auto flush = [&](std::string_view end) {
    if (!word.empty()) {
      const std::string_view whole(word.data(), static_cast<std::size_t>(end.data() - word.data()));
      const std::size_t first = offset_of_point(whole, 1);
      out += upper(whole.substr(0, first)) + lower(whole.substr(first));
    }
    word = {};
  };
  for (std::size_t at = 0; at < text.size();) {
    const std::string_view rest = text.substr(at);
    const std::size_t bytes = offset_of_point(rest, 1);
    const char32_t point = first_point(rest);
    const bool breaks = is_space(point) ||
                        (point < 0x80 && std::string_view("-({[<").find(static_cast<char>(point)) !=
                                             std::string_view::npos);
    if (breaks) {
      flush(rest);
      out += rest.substr(0, bytes);
    } else if (word.empty()) {
      word = rest;
    }
    at += bytes;
  }
  flush(text.substr(text.size()));
  return out;
}

Value replace_filter(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("replace", arguments, {"old", "new", "count"}, 2);
  const std::string text = text_of(value, budget);
  const std::string from = text_of(p.value(0), budget);
  const std::string to = text_of(p.value(1), budget);
  budget.work(text.size() * std::min<std::size_t>(from.size() + 1, 1u << 16));
  const std::int64_t most = p.integer(2, -1);
  const std::size_t bytes = replaced_size(text, from, to, most);
  budget.work(bytes);
  budget.check(bytes);
  return budget.text(replace(text, from, to, most));
}

Value string_filter(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("string", arguments, {});
  return value.text() != nullptr ? value : budget.text(text_of(value, budget));
}

Value escape_filter(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("escape", arguments, {});
  if (is_safe(value)) return value;
  const std::string text = text_of(value, budget);
  budget.check(text.size() * 6);
  return budget.text(escape_html(text), true);
}

Value safe_filter(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("safe", arguments, {});
  return budget.text(text_of(value, budget), true);
}

Value indent(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("indent", arguments, {"width", "first", "blank"});
  std::string step;
  if (p[0] != nullptr && p.value(0).text() != nullptr) {
    step = p.value(0).text()->text;
  } else {
    const std::int64_t width = std::max<std::int64_t>(0, p.integer(0, 4));
    if (width > 10'000) throw TemplateError("`indent` by so many columns is not supported");
    step = std::string(static_cast<std::size_t>(width), ' ');
  }
  if (value.text() == nullptr) fail_type("`indent` does not work for", value);
  const std::string text = value.text()->text + "\n";  // as the reference does it
  const auto newlines = static_cast<std::size_t>(std::ranges::count(text, '\n'));
  budget.work(text.size() + newlines * step.size());
  budget.check(text.size() * (1 + sizeof(std::string_view)) + text.size() * step.size());
  const bool blank = p.flag(2, false);
  std::string out = p.flag(1, false) ? step : "";
  const std::vector<std::string_view> lines = split_lines(text, false);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out += lines[i].empty() && !blank ? "\n" : "\n" + step;
    out += lines[i];
  }
  return budget.text(std::move(out), is_safe(value));
}

Value center(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("center", arguments, {"width"});
  std::string text = text_of(value, budget);
  const std::int64_t width = p.integer(0, 80);
  const auto length = static_cast<std::int64_t>(count_points(text));
  if (width <= length) return budget.text(std::move(text), is_safe(value));
  if (width > 1'000'000) throw TemplateError("`center` in so many columns is not supported");
  const std::int64_t missing = width - length;
  const auto left = static_cast<std::size_t>(missing / 2 + (missing & width & 1));
  text.insert(0, left, ' ');
  text.append(static_cast<std::size_t>(missing) - left, ' ');
  return budget.text(std::move(text), is_safe(value));
}

Value tojson(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("tojson", arguments, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ascii = p.flag(0, false);
  style.sorted = p.flag(3, false);
  if (p[1] != nullptr && !p.value(1).is_none()) {
    style.indented = true;
    style.item_separator = ",";
    if (p.value(1).text() != nullptr) {
      style.indent = p.value(1).text()->text;
    } else {
      const std::int64_t columns = p.integer(1, 0);
      if (columns > 100) throw TemplateError("`tojson` with such an indent is not supported");
      style.indent = std::string(static_cast<std::size_t>(std::max<std::int64_t>(0, columns)), ' ');
    }
  }
  if (p[2] != nullptr && !p.value(2).is_none()) {
    const Series* const pair = p.value(2).series();
    if (pair == nullptr || pair->items.size() != 2 || pair->items[0].text() == nullptr ||
        pair->items[1].text() == nullptr) {
      throw TemplateError("the `separators` of `tojson` are not two texts");
    }
    style.item_separator = pair->items[0].text()->text;
    style.key_separator = pair->items[1].text()->text;
  }
  return budget.text(to_json(value, style, budget));
}

Value format_filter(const Value& value, const Arguments& arguments, Budget& budget) {
  if (!arguments.named.empty() && !arguments.values.empty()) {
    throw TemplateError("`format` takes values or names, not both");
  }
  const Text text{text_of(value, budget)};
  if (arguments.named.empty()) return percent_format(text, budget.tuple(arguments.values), budget);
  Dict dict;
  for (const auto& [name, entry] : arguments.named) dict.set(Value::text(name), entry);
  return percent_format(text, budget.dict(std::move(dict)), budget);
}

Value abs_filter(const Value& value, const Arguments& arguments, Budget&) {
  const Parameters p("abs", arguments, {});
  if (!is_number(value)) fail_type("`abs` does not work for", value);
  if (const auto* real = value.get<double>()) return std::abs(*real);
  return *value.integer() < 0 ? unary("-", value) : Value(*value.integer());
}

/// The number that a text means to Python's int() and float(); nothing where it is none.
/// What Python reads as a number and this does not: `1_000`, and digits of other scripts.
void refuse_foreign_number(std::string_view text) {
  bool foreign = false;
  for (std::size_t at = 0; at < text.size();) {
    const std::string_view rest = text.substr(at);
    const bool ascii = static_cast<unsigned char>(rest.front()) < 0x80;
    foreign = foreign || !ascii || rest.front() == '_';
    constexpr std::string_view kInNumbers = "0123456789_.eE+-";
    if (ascii ? kInNumbers.find(rest.front()) == std::string_view::npos
              : !is_digit(first_point(rest))) {
      return;
    }
    at += offset_of_point(rest, 1);
  }
  if (foreign) throw TemplateError("numbers with `_` or digits beyond ASCII are not supported");
}

std::optional<std::int64_t> whole_number(std::string_view text) {
  text = strip(text, Side::kBoth);
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  if (text.starts_with('-') || text.empty()) return std::nullopt;
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc::result_out_of_range) {
    throw TemplateError("integers beyond 64 bits are not supported");
  }
  if (error != std::errc() || end != text.data() + text.size()) {
    refuse_foreign_number(text);
    return std::nullopt;
  }
  return negative ? -number : number;
}

std::optional<double> real_number(std::string_view text) {
  text = strip(text, Side::kBoth);
  if (text.starts_with('+')) {
    text.remove_prefix(1);
    if (text.starts_with('-')) return std::nullopt;
  }
  if (text.find('(') != std::string_view::npos) return std::nullopt;  // C's `nan(1)`
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) {
    refuse_foreign_number(text);
    return std::nullopt;
  }
  return number;
}

Value int_filter(const Value& value, const Arguments& arguments, Budget&) {
  const Parameters p("int", arguments, {"default", "base"});
  const Value absent = p[0] != nullptr ? p.value(0) : Value(std::int64_t{0});
  if (const auto number = value.integer()) return *number;
  if (value.is_undefined()) fail_undefined(value);
  std::optional<double> real;
  if (const auto* number = value.get<double>()) {
    real = *number;
  } else if (const Text* text = value.text()) {
    if (p.integer(1, 10) != 10) throw TemplateError("`int` with another base is not supported");
    if (const auto number = whole_number(text->text)) return *number;
    real = real_number(text->text);
  }
  if (!real || std::isnan(*real) || std::isinf(*real)) return absent;
  if (std::abs(*real) >= 0x1p63) {
    throw TemplateError("integers beyond 64 bits are not supported");
  }
  return static_cast<std::int64_t>(*real);
}

Value float_filter(const Value& value, const Arguments& arguments, Budget&) {
  const Parameters p("float", arguments, {"default"});
  if (is_number(value)) return real_of(value);
  if (value.is_undefined()) fail_undefined(value);
  if (const Text* text = value.text()) {
    if (const auto real = real_number(text->text)) return *real;
  }
  return p[0] != nullptr ? p.value(0) : Value(0.0);
}

Value round_filter(const Value& value, const Arguments& arguments, Budget&) {
  const Parameters p("round", arguments, {"precision", "method"});
  const std::string_view method = p.text(1).value_or("common");
  const std::int64_t precision = p.integer(0, 0);
  if (!is_number(value)) fail_type("`round` does not work for", value);
  if (method == "common" && precision == 0) {
    if (const auto number = value.integer()) return *number;  // round(5, 0) is 5
    return std::nearbyint(real_of(value));                    // half to even
  }
  if (method != "ceil" && method != "floor" && method != "common") {
    throw TemplateError("the method of `round` is common, ceil or floor");
  }
  if (method == "common" || precision != 0) {
    throw TemplateError("`round` to decimals is not supported");
  }
  return method == "ceil" ? std::ceil(real_of(value)) : std::floor(real_of(value));
}

const std::unordered_map<std::string_view, Filter> kTextFilters = {
    {"abs", abs_filter},
    {"capitalize", change<capitalize>},
    {"center", center},
    {"e", escape_filter},
    {"escape", escape_filter},
    {"float", float_filter},
    {"format", format_filter},
    {"indent", indent},
    {"int", int_filter},
    {"lower", change<lower>},
    {"replace", replace_filter},
    {"round", round_filter},
    {"safe", safe_filter},
    {"string", string_filter},
    {"title", change<title_words>},
    {"tojson", tojson},
    {"trim", trim},
    {"upper", change<upper>},
};

}  // namespace

Filter find_text_filter(std::string_view name) {
  const auto found = kTextFilters.find(name);
  return found == kTextFilters.end() ? nullptr : found->second;
}

}  // namespace zi::chat
