#include "chat/library/filters.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <unordered_map>

#include "base/printable_text.h"
#include "chat/library/attributes.h"
#include "chat/library/parameters.h"
#include "chat/library/tests.h"
#include "chat/values/operators.h"
#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

/// Filters of Jinja2 that are not here.
constexpr std::array<std::string_view, 14> kUnsupportedFilters = {
    "filesizeformat", "forceescape", "groupby", "pprint",   "random",  "slice",     "striptags",
    "truncate",       "urlencode",   "urlize",  "wordwrap", "xmlattr", "wordcount", "attr"};

/// Keeps the items for which a test holds, or does not.
std::vector<Value> selected(const Value& value, const Arguments& arguments, bool by_attribute,
                            bool keep, Budget& budget) {
  std::size_t used = 0;
  Value path;
  if (by_attribute) {
    if (arguments.values.empty()) throw TemplateError("the name of an attribute is missing");
    path = arguments.values[used++];
  }
  Test test = nullptr;
  Arguments rest;
  if (used < arguments.values.size()) {
    const Value& name = arguments.values[used++];
    if (name.text() == nullptr) fail_type("the name of a test cannot be", name);
    test = find_test(name.text()->text);
    if (test == nullptr) throw TemplateError(unknown_test(name.text()->text));
    rest.values.assign(arguments.values.begin() + static_cast<std::ptrdiff_t>(used),
                       arguments.values.end());
    rest.named = arguments.named;
  }
  std::vector<Value> kept;
  for (Value& item : items_of(value, budget)) {
    budget.step();
    const Value tested = by_attribute ? at_path(item, path, budget) : item;
    const bool holds = test == nullptr ? truth(tested) : test(tested, rest, budget);
    if (holds == keep) kept.push_back(std::move(item));
  }
  return kept;
}

template <bool kByAttribute, bool kKeep>
Value select_filter(const Value& value, const Arguments& arguments, Budget& budget) {
  return budget.generator(value, arguments, [value, arguments, &budget]() -> std::vector<Value> {
    if (!truth(value)) return {};  // also what has no items at all, such as none
    const Budget::Nested nested(budget);
    return selected(value, arguments, kByAttribute, kKeep, budget);
  });
}

std::vector<Value> map_attribute(const Value& value, const Arguments& arguments, Budget& budget) {
  const Parameters p("map", arguments, {"attribute", "default"});
  const Value* const absent = p[1] != nullptr && !p.value(1).is_none() ? p[1] : nullptr;
  std::vector<Value> mapped;
  for (const Value& item : items_of(value, budget)) {
    mapped.push_back(at_path(item, p.value(0), budget, absent));
  }
  return mapped;
}

std::vector<Value> mapped_items(const Value& value, const Arguments& arguments, Budget& budget) {
  const bool by_attribute = std::ranges::any_of(
      arguments.named, [](const auto& named) { return named.first == "attribute"; });
  if (arguments.values.empty() && by_attribute) return map_attribute(value, arguments, budget);
  if (arguments.values.empty()) throw TemplateError("`map` needs a filter or an attribute");
  const Value& name = arguments.values.front();
  if (name.text() == nullptr) fail_type("the name of a filter cannot be", name);
  const Filter filter = find_filter(name.text()->text);
  if (filter == nullptr) throw TemplateError(unknown_filter(name.text()->text));
  Arguments rest;
  rest.values.assign(arguments.values.begin() + 1, arguments.values.end());
  rest.named = arguments.named;
  std::vector<Value> mapped;
  for (const Value& item : items_of(value, budget)) {
    budget.step();
    mapped.push_back(filter(item, rest, budget));
  }
  return mapped;
}

Value map_filter(const Value& value, const Arguments& arguments, Budget& budget) {
  return budget.generator(value, arguments, [value, arguments, &budget]() -> std::vector<Value> {
    if (!truth(value)) return {};
    const Budget::Nested nested(budget);
    return mapped_items(value, arguments, budget);
  });
}

}  // namespace

Value at_path(const Value& value, const Value& path, Budget& budget, const Value* absent) {
  Value found = value;
  if (path.text() == nullptr) {
    if (!path.is_none()) found = subscript(value, path, budget);
    return found.is_undefined() && absent != nullptr ? *absent : found;
  }
  std::string_view rest = path.text()->text;
  for (;;) {
    const std::size_t dot = std::min(rest.find('.'), rest.size());
    const std::string_view part = rest.substr(0, dot);
    const bool number = !part.empty() && part.size() < 10 &&
                        part.find_first_not_of("0123456789") == std::string_view::npos;
    const Value key =
        number ? Value(std::int64_t{std::stoi(std::string(part))}) : budget.text(std::string(part));
    found = subscript(found, key, budget);
    if (found.is_undefined() && absent != nullptr) found = *absent;
    if (dot == rest.size()) return found;
    rest.remove_prefix(dot + 1);
  }
}

Filter find_mapping_filter(std::string_view name) {
  if (name == "map") return map_filter;
  if (name == "select") return select_filter<false, true>;
  if (name == "reject") return select_filter<false, false>;
  if (name == "selectattr") return select_filter<true, true>;
  if (name == "rejectattr") return select_filter<true, false>;
  return nullptr;
}

Filter find_filter(std::string_view name) {
  if (const Filter found = find_text_filter(name)) return found;
  if (const Filter found = find_sequence_filter(name)) return found;
  return find_mapping_filter(name);
}

std::string unknown_filter(std::string_view name) {
  const bool known = std::ranges::find(kUnsupportedFilters, name) != kUnsupportedFilters.end();
  return fmt::format("{} {}", known ? "unsupported filter" : "there is no filter", in_quotes(name));
}

}  // namespace zi::chat
