#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <unordered_map>

#include "chat/library/filters.h"
#include "chat/library/parameters.h"
#include "chat/values/operators.h"
#include "chat/values/python_text.h"
#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

/// What sorting and comparing look at: texts in lower case, unless case matters.
Value folded(const Value& value, bool case_sensitive, Budget& budget) {
  const Text* const text = value.text();
  if (case_sensitive || text == nullptr) return value;
  budget.work(text->text.size() * 16);
  return budget.text(lower(text->text));
}

/// Sorts items by keys: equal ones stay in their order.
std::vector<Value> sorted(std::vector<Value> items, const std::vector<Value>& keys, bool reverse,
                          Budget& budget) {
  std::vector<std::size_t> order(items.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  // An order that contradicts itself (NaN) must not lead std::sort astray: merge sort bears it.
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) {
    return reverse ? less(keys[b], keys[a], budget) : less(keys[a], keys[b], budget);
  });
  std::vector<Value> out;
  for (const std::size_t i : order) out.push_back(items[i]);
  return out;
}

Value default_filter(const Value& value, const Arguments& arguments, Budget&) {
  const Parameters p("default", arguments, {"default_value", "boolean"});
  const bool use = value.is_undefined() || (p.flag(1, false) && !truth(value));
  if (!use) return value;
  return p[0] != nullptr ? p.value(0) : Value::text("");
}

Value length_filter(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("length", arguments, {});
  if (const Text* text = value.text()) budget.work(text->text.size());
  return length(value);
}

Value list_filter(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("list", arguments, {});
  return budget.list(items_of(value, budget));
}

Value first(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("first", arguments, {});
  const std::vector<Value> items = items_of(value, budget);
  return items.empty() ? Value::undefined("`first` of what is empty") : items.front();
}

Value last(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("last", arguments, {});
  const Series* const s = value.series();
  if (s != nullptr && s->type == Series::Type::kGenerator) {
    throw TemplateError("`last` of a generator; put `list` in front of it");
  }
  if (value.is_undefined()) fail_undefined(value);
  const std::vector<Value> items = items_of(value, budget);
  return items.empty() ? Value::undefined("`last` of what is empty") : items.back();
}

Value join_filter(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("join", arguments, {"d", "attribute"});
  const std::string separator = p[0] != nullptr ? to_text(p.value(0), budget) : "";
  const bool by_attribute = p[1] != nullptr && !p.value(1).is_none();
  std::string out;
  bool begun = false;
  for (const Value& item : items_of(value, budget)) {
    if (begun) out += separator;
    begun = true;
    out += to_text(by_attribute ? at_path(item, p.value(1), budget) : item, budget);
    budget.work(separator.size());
    budget.check(out.size());
  }
  return budget.text(std::move(out));
}

Value items_filter(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("items", arguments, {});
  return budget.generator(value, arguments, [value, &budget] {
    std::vector<Value> items;
    if (value.is_undefined()) return items;
    const Dict* const dict = value.dict();
    if (dict == nullptr) fail_type("`items` does not work for", value);
    for (const auto& [key, entry] : dict->items()) items.push_back(budget.tuple({key, entry}));
    return items;
  });
}

Value dictsort(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("dictsort", arguments, {"case_sensitive", "by", "reverse"});
  const Dict* const dict = value.dict();
  if (dict == nullptr) fail_type("`dictsort` does not work for", value);
  const std::string_view by = p.text(1).value_or("key");
  if (by != "key" && by != "value") throw TemplateError("`dictsort` sorts by key or by value");
  std::vector<Value> items, keys;
  for (const auto& [key, entry] : dict->items()) {
    items.push_back(budget.tuple({key, entry}));
    keys.push_back(folded(by == "key" ? key : entry, p.flag(0, false), budget));
  }
  return budget.list(sorted(std::move(items), keys, p.flag(2, false), budget));
}

/// The keys that `sort` compares: one for each path of `name,other.name`.
Value sort_key(const Value& item, const Value* paths, bool case_sensitive, Budget& budget) {
  if (paths == nullptr || paths->is_none()) return folded(item, case_sensitive, budget);
  if (paths->text() == nullptr) {
    return folded(at_path(item, *paths, budget), case_sensitive, budget);
  }
  std::vector<Value> keys;
  for (const std::string_view path : split(paths->text()->text, ",", -1, false)) {
    const Value found = at_path(item, budget.text(std::string(path)), budget);
    keys.push_back(folded(found, case_sensitive, budget));
  }
  return budget.list(std::move(keys));
}

Value sort_filter(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("sort", arguments, {"reverse", "case_sensitive", "attribute"});
  std::vector<Value> items = items_of(value, budget);
  std::vector<Value> keys;
  for (const Value& item : items) keys.push_back(sort_key(item, p[2], p.flag(1, false), budget));
  return budget.list(sorted(std::move(items), keys, p.flag(0, false), budget));
}

Value unique(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("unique", arguments, {"case_sensitive", "attribute"});
  std::set<std::string> seen;
  std::vector<Value> kept;
  for (Value& item : items_of(value, budget)) {
    const Value at = p[1] != nullptr ? at_path(item, p.value(1), budget) : item;
    const std::string key = key_of(folded(at, p.flag(0, false), budget));
    budget.work(key.size());
    if (seen.insert(key).second) kept.push_back(std::move(item));
  }
  return budget.generator(std::move(kept));
}

template <bool kMost>
Value extreme(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p(kMost ? "max" : "min", arguments, {"case_sensitive", "attribute"});
  std::optional<Value> best, best_key;
  for (Value& item : items_of(value, budget)) {
    const Value at = p[1] != nullptr ? at_path(item, p.value(1), budget) : item;
    Value key = folded(at, p.flag(0, false), budget);
    const bool better =
        !best || (kMost ? less(*best_key, key, budget) : less(key, *best_key, budget));
    if (!better) continue;
    best = std::move(item);
    best_key = std::move(key);
  }
  return best ? *best : Value::undefined("the least or greatest of what is empty");
}

Value reverse(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("reverse", arguments, {});
  if (value.text() != nullptr) return slice(value, None{}, None{}, std::int64_t{-1}, budget);
  const Series* const s = value.series();
  const bool is_generator = s != nullptr && s->type == Series::Type::kGenerator;
  if (value.is_undefined()) fail_undefined(value);
  std::vector<Value> items = items_of(value, budget);
  std::ranges::reverse(items);
  return is_generator ? budget.list(std::move(items)) : budget.generator(std::move(items));
}

Value sum_filter(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("sum", arguments, {"attribute", "start"});
  Value total = p[1] != nullptr ? p.value(1) : Value(std::int64_t{0});
  if (total.text() != nullptr) throw TemplateError("`sum` does not add texts; use `join`");
  const bool by_attribute = p[0] != nullptr && !p.value(0).is_none();
  for (const Value& item : items_of(value, budget)) {
    total = binary("+", total, by_attribute ? at_path(item, p.value(0), budget) : item, budget);
  }
  return total;
}

Value batch(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("batch", arguments, {"linecount", "fill_with"}, 1);
  const std::int64_t count = p.integer(0, 0);
  if (count < 1 || count > 100'000) throw TemplateError("`batch` of so many items");
  const auto most = static_cast<std::size_t>(count);
  std::vector<Value> lines, line;
  for (Value& item : items_of(value, budget)) {
    if (line.size() == most) lines.push_back(budget.list(std::exchange(line, {})));
    line.push_back(std::move(item));
  }
  if (!line.empty()) {
    if (p[1] != nullptr && !p.value(1).is_none()) line.resize(most, p.value(1));
    lines.push_back(budget.list(std::move(line)));
  }
  return budget.generator(std::move(lines));
}

const std::unordered_map<std::string_view, Filter> kSequenceFilters = {
    {"batch", batch},        {"count", length_filter},
    {"d", default_filter},   {"default", default_filter},
    {"dictsort", dictsort},  {"first", first},
    {"items", items_filter}, {"join", join_filter},
    {"last", last},          {"length", length_filter},
    {"list", list_filter},   {"max", extreme<true>},
    {"min", extreme<false>}, {"reverse", reverse},
    {"sort", sort_filter},   {"sum", sum_filter},
    {"unique", unique},
};

}  // namespace

Filter find_sequence_filter(std::string_view name) {
  const auto found = kSequenceFilters.find(name);
  return found == kSequenceFilters.end() ? nullptr : found->second;
}

}  // namespace zi::chat
