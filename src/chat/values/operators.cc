#include "chat/values/operators.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "chat/values/arithmetic.h"
#include "chat/values/python_text.h"
#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

using SeriesType = Series::Type;

/// Sequences that Python compares item by item, each with its own type.
bool ordered(const Series* s) {
  return s != nullptr && (s->type == SeriesType::kList || s->type == SeriesType::kTuple);
}

bool equal_dicts(const Dict& a, const Dict& b, Budget& budget) {
  if (a.items().size() != b.items().size()) return false;
  return std::ranges::all_of(a.items(), [&](const Dict::Item& item) {
    budget.search(item.first);
    const Value* const other = b.find(item.first);
    return other != nullptr && equal(item.second, *other, budget);
  });
}

bool equal_sequences(const Series& a, const Series& b, Budget& budget) {
  return a.items.size() == b.items.size() &&
         std::equal(a.items.begin(), a.items.end(), b.items.begin(),
                    [&](const Value& x, const Value& y) { return equal(x, y, budget); });
}

std::string joined(const std::vector<Value>& items, Budget& budget) {
  std::string out;
  for (const Value& item : items) {
    if (!out.empty()) out += ", ";
    out += repr(item, budget);
    budget.check(out.size());
  }
  return out;
}

/// Makes the items of a generator that were not asked for before.
void fill(Series& s) {
  if (const auto source = std::exchange(s.source, nullptr)) s.items = source();
}

std::string repr_sequence(const Series& s, Budget& budget) {
  if (s.type == SeriesType::kList) return "[" + joined(s.items, budget) + "]";
  if (s.type != SeriesType::kTuple) {
    throw TemplateError(
        "the text of a range, of a view of a dict or of a generator is not supported");
  }
  return "(" + joined(s.items, budget) + (s.items.size() == 1 ? ",)" : ")");
}

std::string repr_dict(const Dict& dict, Budget& budget) {
  std::string out = "{";
  for (const auto& [key, value] : dict.items()) {
    if (out.size() > 1) out += ", ";
    out += repr(key, budget) + ": " + repr(value, budget);
    budget.check(out.size());
  }
  return out + "}";
}

}  // namespace

void fail_undefined(const Value& value) {
  const Undefined& undefined = *value.get<Undefined>();
  throw TemplateError(undefined.why ? *undefined.why : "a value is undefined");
}

void fail_type(std::string_view what, const Value& value) {
  if (value.is_undefined()) fail_undefined(value);
  throw TemplateError(fmt::format("{} a value of type {}", what, value.type_name()));
}

bool truth(const Value& value) {
  if (value.is_undefined() || value.is_none()) return false;
  if (const auto number = value.integer()) return *number != 0;
  if (const auto* real = value.get<double>()) return *real != 0;
  if (const Text* text = value.text()) return !text->text.empty();
  if (const Series* s = value.series())
    return s->type == SeriesType::kGenerator || !s->items.empty();
  if (const Dict* dict = value.dict()) return !dict->items().empty();
  return true;
}

std::string to_text(const Value& value, Budget& budget) {
  if (const Text* text = value.text()) {
    budget.work(text->text.size());
    budget.check(text->text.size());
    return text->text;
  }
  return value.is_undefined() ? std::string() : repr(value, budget);
}

std::string repr(const Value& value, Budget& budget) {
  budget.step();
  if (value.is_undefined()) return "Undefined";
  if (value.is_none()) return "None";
  if (const auto* flag = value.get<bool>()) return *flag ? "True" : "False";
  if (const auto* number = value.get<std::int64_t>()) return fmt::to_string(*number);
  if (const auto* real = value.get<double>()) return repr_of(*real);
  if (const Text* text = value.text()) {
    if (text->safe) throw TemplateError("repr() of a text that is marked as safe is not supported");
    budget.work(8 * text->text.size());
    budget.check(8 * text->text.size());
    return repr_of(text->text);
  }
  if (const Series* s = value.series()) return repr_sequence(*s, budget);
  if (const Dict* dict = value.dict()) return repr_dict(*dict, budget);
  fail_type("there is no text for", value);
}

bool equal(const Value& a, const Value& b, Budget& budget) {
  budget.step();
  if (a.is_undefined() || b.is_undefined()) return a.is_undefined() && b.is_undefined();
  if (a.is_none() || b.is_none()) return a.is_none() && b.is_none();
  if (is_number(a) && is_number(b))
    return compare_numbers(a, b) == std::partial_ordering::equivalent;
  if (a.text() != nullptr && b.text() != nullptr) {
    budget.work(std::min(a.text()->text.size(), b.text()->text.size()));
    return a.text()->text == b.text()->text;
  }
  const Series* const s = a.series();
  const Series* const t = b.series();
  if (s != nullptr && t != nullptr) {
    if (s == t) return true;
    return s->type == t->type && s->type != SeriesType::kView &&
           s->type != SeriesType::kGenerator && equal_sequences(*s, *t, budget);
  }
  if (a.dict() != nullptr && b.dict() != nullptr) return equal_dicts(*a.dict(), *b.dict(), budget);
  // Namespaces, functions and loops are equal to themselves alone.
  if (const auto* x = a.get<std::shared_ptr<Namespace>>()) {
    const auto* y = b.get<std::shared_ptr<Namespace>>();
    return y != nullptr && *x == *y;
  }
  if (const auto* x = a.get<std::shared_ptr<Function>>()) {
    const auto* y = b.get<std::shared_ptr<Function>>();
    return y != nullptr && *x == *y;
  }
  return false;
}

bool less(const Value& a, const Value& b, Budget& budget) {
  budget.step();
  if (is_number(a) && is_number(b)) return compare_numbers(a, b) < 0;
  if (a.text() != nullptr && b.text() != nullptr) {
    budget.work(std::min(a.text()->text.size(), b.text()->text.size()));
    return a.text()->text < b.text()->text;  // UTF-8 is in the order of its code points
  }
  const Series* const s = a.series();
  const Series* const t = b.series();
  if (ordered(s) && ordered(t) && s->type == t->type) {
    for (std::size_t i = 0; i < std::min(s->items.size(), t->items.size()); ++i) {
      if (!equal(s->items[i], t->items[i], budget)) return less(s->items[i], t->items[i], budget);
    }
    return s->items.size() < t->items.size();
  }
  for (const Value* value : {&a, &b}) {
    if (value->is_undefined()) fail_undefined(*value);
  }
  throw TemplateError(
      fmt::format("values of the types {} and {} have no order", a.type_name(), b.type_name()));
}

bool compare(std::string_view symbol, const Value& a, const Value& b, Budget& budget) {
  if (symbol == "==") return equal(a, b, budget);
  if (symbol == "!=") return !equal(a, b, budget);
  if (symbol == "in") return contains(b, a, budget);
  if (symbol == "not in") return !contains(b, a, budget);
  if (symbol == "<") return less(a, b, budget);
  if (symbol == ">") return less(b, a, budget);
  // NaN is neither below, nor equal, nor above.
  if (is_number(a) && is_number(b)) {
    return symbol == "<=" ? compare_numbers(a, b) <= 0 : compare_numbers(a, b) >= 0;
  }
  return symbol == "<=" ? !less(b, a, budget) : !less(a, b, budget);
}

bool contains(const Value& whole, const Value& part, Budget& budget) {
  if (const Text* text = whole.text()) {
    if (part.text() == nullptr) fail_type("`in` a text needs a text, not", part);
    const std::string& wanted = part.text()->text;
    budget.work(text->text.size() * std::min<std::size_t>(wanted.size() + 1, 1u << 16));
    return text->text.find(wanted) != std::string::npos;
  }
  if (const Dict* dict = whole.dict()) {
    budget.search(part);
    return dict->find(part) != nullptr;
  }
  if (whole.is_undefined()) return false;
  Series* const s = whole.series();
  if (s == nullptr) fail_type("`in` does not work for", whole);
  fill(*s);
  const bool gone = s->type == SeriesType::kGenerator;  // what was looked at
  for (std::size_t at = s->taken; at < s->items.size(); ++at) {
    const bool there = equal(s->items[at], part, budget);
    if (gone) {
      s->items[at] = Value();
      s->taken = at + 1;
    }
    if (there) return true;
  }
  return false;
}

std::int64_t length(const Value& value) {
  if (value.is_undefined()) return 0;
  if (const Text* text = value.text()) {
    return static_cast<std::int64_t>(count_points(text->text));
  }
  if (const Dict* dict = value.dict()) return std::ssize(dict->items());
  const Series* const s = value.series();
  if (s == nullptr || s->type == SeriesType::kGenerator) fail_type("there is no length of", value);
  return std::ssize(s->items);
}

std::vector<Value> items_of(const Value& value, Budget& budget) {
  std::vector<Value> items;
  if (value.is_undefined()) return items;
  if (Series* s = value.series()) {
    if (s->type == SeriesType::kGenerator) {
      fill(*s);
      budget.step(std::ssize(s->items));
      s->items.erase(s->items.begin(),
                     s->items.begin() + static_cast<std::ptrdiff_t>(std::exchange(s->taken, 0)));
      return std::exchange(s->items, {});
    }
    budget.step(std::ssize(s->items));
    budget.check(s->items.size() * sizeof(Value));
    return s->items;
  }
  if (const Dict* dict = value.dict()) {
    budget.step(std::ssize(dict->items()));
    for (const auto& [key, entry] : dict->items()) items.push_back(key);
    return items;
  }
  const Text* const text = value.text();
  if (text == nullptr) fail_type("there are no items in", value);
  budget.step(std::ssize(text->text));
  budget.check(text->text.size() * sizeof(Value) * 4);
  for (const std::string_view point : points(text->text)) {
    items.push_back(budget.text(std::string(point)));
  }
  return items;
}

}  // namespace zi::chat
