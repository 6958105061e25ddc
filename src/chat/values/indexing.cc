#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "chat/values/arithmetic.h"
#include "chat/values/operators.h"
#include "chat/values/percent_format.h"
#include "chat/values/python_text.h"
#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

using SeriesType = Series::Type;

/// The bounds that Python's slice.indices() gives: `count` positions from `begin` on.
struct Positions {
  std::int64_t begin = 0;
  std::int64_t step = 1;
  std::int64_t count = 0;
};

std::optional<std::int64_t> bound(const Value& value) {
  if (value.is_undefined() && value.get<Undefined>()->why == nullptr) return std::nullopt;
  if (value.is_none()) return std::nullopt;
  const auto number = value.integer();
  if (!number) fail_type("a slice needs integers, not", value);
  return number;
}

Positions positions(std::int64_t length, const Value& begin, const Value& end, const Value& step) {
  Positions p;
  p.step = bound(step).value_or(1);
  if (p.step == 0) throw TemplateError("the step of a slice is zero");
  const bool forward = p.step > 0;
  const auto clamp = [&](std::optional<std::int64_t> value, std::int64_t absent) {
    if (!value) return absent;
    std::int64_t at = *value < 0 ? *value + length : *value;
    if (at < 0) at = forward ? 0 : -1;
    return std::min(at, forward ? length : length - 1);
  };
  p.begin = clamp(bound(begin), forward ? 0 : length - 1);
  const std::int64_t stop = clamp(bound(end), forward ? length : -1);
  const std::int64_t distance = forward ? stop - p.begin : p.begin - stop;
  const std::int64_t stride = forward ? p.step
                              : p.step == std::numeric_limits<std::int64_t>::min()
                                  ? std::numeric_limits<std::int64_t>::max()
                                  : -p.step;
  p.count = distance <= 0 ? 0 : (distance - 1) / stride + 1;
  return p;
}

/// Repeats of a text or list; negative ones are none.
std::size_t repeats(std::int64_t count, std::size_t bytes, Budget& budget) {
  if (count <= 0 || bytes == 0) return 0;
  const auto times = static_cast<std::size_t>(count);
  if (times > Budget::kMostBytes / bytes) budget.check(std::numeric_limits<std::size_t>::max());
  budget.work(times * bytes);
  budget.check(times * bytes);
  return times;
}

Value repeat(const Value& value, std::int64_t count, Budget& budget) {
  if (const Text* text = value.text()) {
    std::string out;
    const std::size_t times = repeats(count, text->text.size(), budget);
    out.reserve(times * text->text.size());
    for (std::size_t i = 0; i < times; ++i) out += text->text;
    return budget.text(std::move(out), text->safe);
  }
  const Series& s = *value.series();
  std::vector<Value> items;
  const std::size_t times = repeats(count, s.items.size() * sizeof(Value), budget);
  for (std::size_t i = 0; i < times; ++i) {
    items.insert(items.end(), s.items.begin(), s.items.end());
  }
  return budget.series(s.type, std::move(items));
}

bool repeatable(const Value& value) {
  const Series* const s = value.series();
  return value.text() != nullptr ||
         (s != nullptr && (s->type == SeriesType::kList || s->type == SeriesType::kTuple));
}

Value joined(const Text& a, const Text& b, Budget& budget) {
  // Markup escapes what it meets.
  const bool safe = a.safe || b.safe;
  budget.work(a.text.size() + b.text.size());
  budget.check((a.text.size() + b.text.size()) * (a.safe != b.safe ? 5 : 1));
  std::string left = safe && !a.safe ? escape_html(a.text) : a.text;
  left += safe && !b.safe ? escape_html(b.text) : b.text;
  return budget.text(std::move(left), safe);
}

}  // namespace

Value binary(std::string_view symbol, const Value& a, const Value& b, Budget& budget) {
  if (a.is_undefined()) fail_undefined(a);
  if (symbol == "%" && a.text() != nullptr) return percent_format(*a.text(), b, budget);
  if (b.is_undefined()) fail_undefined(b);
  if (is_number(a) && is_number(b)) return binary_numbers(symbol, a, b);
  if (symbol == "+" && a.text() != nullptr && b.text() != nullptr) {
    return joined(*a.text(), *b.text(), budget);
  }
  if (symbol == "+" && repeatable(a) && repeatable(b) && a.series() != nullptr &&
      b.series() != nullptr && a.series()->type == b.series()->type) {
    std::vector<Value> items = items_of(a, budget);
    const std::vector<Value>& more = b.series()->items;
    items.insert(items.end(), more.begin(), more.end());
    return budget.series(a.series()->type, std::move(items));
  }
  if (symbol == "*" && repeatable(a) && b.integer()) return repeat(a, *b.integer(), budget);
  if (symbol == "*" && repeatable(b) && a.integer()) return repeat(b, *a.integer(), budget);
  throw TemplateError(fmt::format("`{}` does not work for the types {} and {}", symbol,
                                  a.type_name(), b.type_name()));
}

Value unary(std::string_view symbol, const Value& a) {
  if (!is_number(a)) fail_type(fmt::format("`{}` does not work for", symbol), a);
  if (symbol == "+") return a.integer() ? Value(*a.integer()) : a;
  if (const auto* real = a.get<double>()) return -*real;
  return binary_numbers("-", std::int64_t{0}, a);
}

Value slice(const Value& value, const Value& begin, const Value& end, const Value& step,
            Budget& budget) {
  const Series* const s = value.series();
  if (s != nullptr && s->type != SeriesType::kView && s->type != SeriesType::kGenerator) {
    const Positions p = positions(std::ssize(s->items), begin, end, step);
    budget.step(p.count);
    std::vector<Value> items;
    for (std::int64_t i = 0; i < p.count; ++i) {
      items.push_back(s->items[static_cast<std::size_t>(p.begin + i * p.step)]);
    }
    return budget.series(s->type, std::move(items));
  }
  const Text* const text = value.text();
  if (text == nullptr) fail_type("a slice does not work for", value);
  budget.work(text->text.size());
  const auto length = static_cast<std::int64_t>(count_points(text->text));
  const Positions p = positions(length, begin, end, step);
  if (p.step == 1) {
    const std::size_t from = offset_of_point(text->text, static_cast<std::size_t>(p.begin));
    const std::string_view rest = std::string_view(text->text).substr(from);
    const std::size_t bytes = offset_of_point(rest, static_cast<std::size_t>(p.count));
    return budget.text(std::string(rest.substr(0, bytes)), text->safe);
  }
  budget.check(text->text.size() * sizeof(std::string_view));
  budget.step(length);
  const std::vector<std::string_view> all = points(text->text);
  std::string out;
  for (std::int64_t i = 0; i < p.count; ++i) {
    out += all[static_cast<std::size_t>(p.begin + i * p.step)];
  }
  return budget.text(std::move(out), text->safe);
}

std::optional<Value> item(const Value& value, const Value& index, Budget& budget) {
  if (value.is_undefined()) fail_undefined(value);
  if (const Dict* dict = value.dict()) {
    const bool hashable = index.dict() == nullptr &&
                          (index.series() == nullptr || index.series()->type == SeriesType::kTuple);
    budget.search(index);
    const Value* const found = hashable ? dict->find(index) : nullptr;
    if (found == nullptr) return std::nullopt;
    return *found;
  }
  const auto number = index.integer();
  if (!number) return std::nullopt;
  if (const Series* s = value.series()) {
    if (s->type == SeriesType::kView || s->type == SeriesType::kGenerator) return std::nullopt;
    const std::int64_t length = std::ssize(s->items);
    const std::int64_t at = *number < 0 ? *number + length : *number;
    if (at < 0 || at >= length) return std::nullopt;
    return s->items[static_cast<std::size_t>(at)];
  }
  if (const Text* text = value.text()) {
    budget.work(text->text.size());
    const auto length = static_cast<std::int64_t>(count_points(text->text));
    const std::int64_t at = *number < 0 ? *number + length : *number;
    if (at < 0 || at >= length) return std::nullopt;
    const std::size_t from = offset_of_point(text->text, static_cast<std::size_t>(at));
    const std::string_view rest = std::string_view(text->text).substr(from);
    return budget.text(std::string(rest.substr(0, offset_of_point(rest, 1))), text->safe);
  }
  return std::nullopt;
}

}  // namespace zi::chat
