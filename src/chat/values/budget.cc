#include "chat/values/budget.h"

#include <fmt/format.h>

#include <algorithm>

#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

constexpr std::size_t kBoxBytes = 64;     // of what holds a value, about
constexpr std::size_t kEntryBytes = 160;  // of an entry of a dict, about

}  // namespace

void Budget::check_depth(int depth) {
  if (depth > kMostDepth) {
    throw TemplateError(fmt::format("values are nested deeper than {}", kMostDepth));
  }
}

Value Budget::text(std::string text, bool safe) {
  const std::size_t bytes = kBoxBytes + text.capacity();
  return std::shared_ptr<const Text>(hold(Text{std::move(text), safe}, bytes));
}

Value Budget::series(Series::Type type, std::vector<Value> items) {
  Series made;
  made.type = type;
  for (const Value& item : items) made.depth = std::max(made.depth, item.depth() + 1);
  check_depth(made.depth);
  const std::size_t bytes = kBoxBytes + items.size() * sizeof(Value);
  made.items = std::move(items);
  return hold(std::move(made), bytes);
}

Value Budget::generator(const Value& from, const Arguments& arguments,
                        std::function<std::vector<Value>()> source) {
  Series made;
  made.type = Series::Type::kGenerator;
  made.depth = from.depth() + 1;
  for (const Value& value : arguments.values) made.depth = std::max(made.depth, value.depth() + 1);
  for (const auto& [name, value] : arguments.named) {
    made.depth = std::max(made.depth, value.depth() + 1);
  }
  check_depth(made.depth);
  made.source = std::move(source);
  return hold(std::move(made), 4 * kBoxBytes);
}

Value Budget::dict(Dict dict) {
  check_depth(dict.depth());
  std::size_t bytes = kBoxBytes + dict.items().size() * kEntryBytes;
  for (const auto& [key, value] : dict.items()) {
    if (const Text* text = key.text()) bytes += text->text.size();
  }
  return std::shared_ptr<const Dict>(hold(std::move(dict), bytes));
}

Value Budget::function(std::string name, std::function<Value(Arguments&)> call,
                       const Value& bound) {
  const int depth = bound.depth() + 1;
  check_depth(depth);
  return hold(Function{std::move(name), depth, std::move(call)}, 2 * kBoxBytes);
}

void Budget::fail_steps() {
  throw TemplateError(
      fmt::format("it takes more than {} steps; templates of models take thousands", kMostSteps));
}

void Budget::fail_bytes() {
  throw TemplateError(fmt::format("it needs more than {} MiB of memory", kMostBytes >> 20));
}

void Budget::fail_nesting() {
  throw TemplateError(fmt::format("calls and expressions are nested deeper than {}", kMostNesting));
}

}  // namespace zi::chat
