#include "chat/library/attributes.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <unordered_set>

#include "base/printable_text.h"
#include "chat/library/parameters.h"
#include "chat/values/arithmetic.h"
#include "chat/values/operators.h"
#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

using Names = std::unordered_set<std::string_view>;

/// What Python's types have and this has not.
const Names kNumberNames = {"real",       "imag",       "numerator",        "denominator",
                            "conjugate",  "bit_length", "bit_count",        "to_bytes",
                            "from_bytes", "is_integer", "as_integer_ratio", "hex",
                            "fromhex"};
const Names kSequenceNames = {"start",    "stop",       "step",    "isdisjoint",
                              "mapping",  "send",       "throw",   "close",
                              "gi_frame", "gi_running", "gi_code", "gi_yieldfrom"};
/// What would change a list or a dict: the reference refuses it where it is used.
const Names kListChanges = {"append", "clear",  "extend",  "insert",
                            "pop",    "remove", "reverse", "sort"};
const Names kDictChanges = {"clear", "pop", "popitem", "setdefault", "update"};

Value changing(std::string_view name, const Value& value) {
  return Value::undefined(
      fmt::format("`{}` would change a {}, which a template may not do", name, value.type_name()));
}

Value no_such(const Value& value, std::string_view name) {
  return Value::undefined(
      fmt::format("a value of type {} has no {}", value.type_name(), in_quotes(name)));
}

std::optional<Value> list_method(const Value& value, std::string_view name, Budget& budget) {
  const Series& s = *value.series();
  const bool list = s.type == Series::Type::kList;
  if (list && kListChanges.contains(name)) return changing(name, value);
  const bool items = list || s.type == Series::Type::kTuple || s.type == Series::Type::kRange;
  if (items && (name == "index" || name == "count")) {
    const bool counts = name == "count";
    const auto search = [value, counts, &budget](Arguments& arguments) {
      const Parameters p(counts ? "count" : "index", arguments, {"value"}, 1);
      std::int64_t count = 0;
      std::int64_t at = 0;
      for (const Value& item : value.series()->items) {
        if (equal(item, p.value(0), budget)) {
          if (!counts) return Value(at);
          ++count;
        }
        ++at;
      }
      if (!counts) throw TemplateError("`index` of a value that is not there");
      return Value(count);
    };
    return budget.function(std::string(name), search, value);
  }
  if (list && name == "copy") {
    const auto copy = [value, &budget](Arguments&) { return budget.list(value.series()->items); };
    return budget.function("copy", copy, value);
  }
  if (kSequenceNames.contains(name)) {
    throw TemplateError(
        fmt::format("{} of a {} is not supported", in_quotes(name), value.type_name()));
  }
  return std::nullopt;
}

Value view(const Dict& dict, std::string_view name, Budget& budget) {
  budget.step(std::ssize(dict.items()));
  std::vector<Value> items;
  for (const auto& [key, value] : dict.items()) {
    items.push_back(name == "keys" ? key : name == "values" ? value : budget.tuple({key, value}));
  }
  return budget.series(Series::Type::kView, std::move(items));
}

std::optional<Value> dict_method(const Value& value, std::string_view name, Budget& budget) {
  if (name == "items" || name == "keys" || name == "values") {
    const auto call = [value, name = std::string(name), &budget](Arguments& arguments) {
      const Parameters p(name, arguments, {});
      return view(*value.dict(), name, budget);
    };
    return budget.function(std::string(name), call, value);
  }
  if (name == "get") {
    const auto get = [value, &budget](Arguments& arguments) {
      const Parameters p("get", arguments, {"key", "default"}, 1);
      budget.search(p.value(0));
      const Value* const found = value.dict()->find(p.value(0));
      if (found != nullptr) return *found;
      return p[1] != nullptr ? p.value(1) : Value(None{});
    };
    return budget.function("get", get, value);
  }
  if (name == "copy") {
    return budget.function(
        "copy", [value](Arguments&) { return value; }, value);
  }
  if (kDictChanges.contains(name)) return changing(name, value);
  if (name == "fromkeys") throw TemplateError("`fromkeys` is not supported");
  return std::nullopt;
}

}  // namespace

Value attribute(const Value& value, std::string_view name, Budget& budget) {
  if (value.is_undefined()) fail_undefined(value);
  if (name.starts_with("__")) {
    return Value::undefined(fmt::format("{} is not for templates", in_quotes(name)));
  }
  budget.search(name.size());
  std::optional<Value> found;
  if (value.text() != nullptr) {
    found = text_method(value, name, budget);
  } else if (value.dict() != nullptr) {
    found = dict_method(value, name, budget);
    if (!found) found = item(value, Value::text(std::string(name)), budget);
  } else if (value.series() != nullptr) {
    found = list_method(value, name, budget);
  } else if (const auto* space = value.get<std::shared_ptr<Namespace>>()) {
    const auto entry = (*space)->values.find(name);
    if (entry != (*space)->values.end()) found = entry->second;
  } else if (const auto* loop = value.get<std::shared_ptr<Loop>>()) {
    found = loop_field(*loop, name, budget);
  } else if (is_number(value) ? kNumberNames.contains(name)
                              : value.get<std::shared_ptr<Function>>() != nullptr) {
    throw TemplateError(
        fmt::format("{} of a {} is not supported", in_quotes(name), value.type_name()));
  }
  return found ? *found : no_such(value, name);
}

Value subscript(const Value& value, const Value& index, Budget& budget) {
  if (auto found = item(value, index, budget)) return *found;
  if (index.text() != nullptr) return attribute(value, index.text()->text, budget);
  if (const auto number = index.integer()) return no_such(value, fmt::to_string(*number));
  return no_such(value, index.type_name());
}

}  // namespace zi::chat
