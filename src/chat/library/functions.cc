#include "chat/library/functions.h"

#include <fmt/format.h>

#include <array>

#include "chat/library/parameters.h"
#include "chat/values/operators.h"
#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

constexpr std::int64_t kMostRange = 100'000;  // as in the reference's sandbox
constexpr std::size_t kNamespaceBytes = 256;

Value range(const Arguments& arguments, Budget& budget) {
  const Parameters p("range", arguments, {"start", "stop", "step"}, 1);
  const auto integer = [&](std::size_t i) {
    if (!p.value(i).integer()) fail_type("`range` needs integers, not", p.value(i));
    return *p.value(i).integer();
  };
  const bool one = p[1] == nullptr;
  const std::int64_t begin = one ? 0 : integer(0);
  const std::int64_t end = one ? integer(0) : integer(1);
  const std::int64_t step = p[2] == nullptr ? 1 : integer(2);
  if (step == 0) throw TemplateError("the step of `range` is zero");
  const double size =
      (static_cast<double>(end) - static_cast<double>(begin)) / static_cast<double>(step);
  if (size > static_cast<double>(kMostRange)) {
    throw TemplateError(fmt::format("`range` of more than {} integers", kMostRange));
  }
  std::vector<Value> items;
  for (std::int64_t at = begin; step > 0 ? at < end : at > end;) {
    items.push_back(at);
    if (__builtin_add_overflow(at, step, &at)) break;
  }
  budget.step(std::ssize(items));
  return budget.series(Series::Type::kRange, std::move(items));
}

/// Sets what a dict or pairs hold, and what is given by name.
template <typename Set>
void fill(const Arguments& arguments, std::string_view name, Budget& budget, Set set) {
  if (arguments.values.size() > 1) {
    throw TemplateError(fmt::format("`{}` takes one dict and named values", name));
  }
  if (!arguments.values.empty()) {
    const Value& from = arguments.values.front();
    if (const Dict* dict = from.dict()) {
      budget.step(std::ssize(dict->items()));
      for (const auto& [key, value] : dict->items()) set(key, value);
    } else {
      for (const Value& pair : items_of(from, budget)) {
        const Series* const two = pair.series();
        if (two == nullptr || two->items.size() != 2) {
          throw TemplateError(fmt::format("`{}` needs a dict or pairs", name));
        }
        set(two->items[0], two->items[1]);
      }
    }
  }
  for (const auto& [key, value] : arguments.named) set(Value::text(key), value);
}

Value dict(const Arguments& arguments, Budget& budget) {
  Dict made;
  fill(arguments, "dict", budget,
       [&made](const Value& key, const Value& value) { made.set(key, value); });
  return budget.dict(std::move(made));
}

Value make_namespace(const Arguments& arguments,
                     std::vector<std::shared_ptr<Namespace>>& namespaces, Budget& budget) {
  Namespace made;
  fill(arguments, "namespace", budget, [&made](const Value& key, const Value& value) {
    if (key.text() == nullptr) fail_type("the name of a value in a namespace cannot be", key);
    made.values.insert_or_assign(key.text()->text, value);
  });
  namespaces.push_back(budget.hold(std::move(made), kNamespaceBytes));
  return namespaces.back();
}

Value joiner(const Arguments& arguments, Budget& budget) {
  const Parameters p("joiner", arguments, {"sep"});
  struct Joiner {
    Value separator;
    bool used = false;
  };
  const auto state = std::make_shared<Joiner>();
  state->separator = p[0] != nullptr ? p.value(0) : Value::text(", ");
  const auto join = [state](Arguments&) {
    return std::exchange(state->used, true) ? state->separator : Value::text("");
  };
  return budget.function("joiner", join, state->separator);
}

[[noreturn]] void raise(const Arguments& arguments, Budget& budget) {
  const Parameters p("raise_exception", arguments, {"message"}, 1);
  throw RaisedByTemplate(to_text(p.value(0), budget));
}

/// Python's time of this kind knows no zone, and glibc no microseconds.
std::string without_zone(std::string_view format) {
  std::string out;
  while (!format.empty()) {
    const std::string_view two = format.substr(0, 2);
    if (two == "%f") throw TemplateError("`%f` of `strftime_now` is not supported");
    if (two == "%z" || two == "%Z") {
      format.remove_prefix(2);
      continue;
    }
    const std::size_t bytes = two == "%%" ? 2 : 1;
    out += format.substr(0, bytes);
    format.remove_prefix(bytes);
  }
  return out;
}

Value strftime_now(const Arguments& arguments, std::time_t now, Budget& budget) {
  const Parameters p("strftime_now", arguments, {"format"}, 1);
  const std::string format = without_zone(p.text(0).value_or(""));
  constexpr std::size_t kMostBytes = 4096;
  std::tm local{};
  ::localtime_r(&now, &local);
  std::array<char, kMostBytes> out{};
  const std::size_t bytes =
      format.empty() ? 0 : std::strftime(out.data(), out.size(), format.c_str(), &local);
  if (bytes == 0 && !format.empty()) {
    throw TemplateError("`strftime_now` with a format that gives nothing, or too much");
  }
  return budget.text(std::string(out.data(), bytes));
}

}  // namespace

std::map<std::string, Value, std::less<>> global_functions(
    std::time_t now, std::vector<std::shared_ptr<Namespace>>& namespaces, Budget& budget) {
  std::map<std::string, Value, std::less<>> all;
  const auto add = [&](const char* name, std::function<Value(Arguments&)> call) {
    all.emplace(name, budget.function(name, std::move(call)));
  };
  const auto refuse = [&](const char* name) {
    add(name, [name](Arguments&) -> Value {
      throw TemplateError(fmt::format("`{}` is not supported", name));
    });
  };
  add("range", [&budget](Arguments& a) { return range(a, budget); });
  add("dict", [&budget](Arguments& a) { return dict(a, budget); });
  add("namespace", [&](Arguments& a) { return make_namespace(a, namespaces, budget); });
  add("joiner", [&budget](Arguments& a) { return joiner(a, budget); });
  add("raise_exception", [&budget](Arguments& a) -> Value { raise(a, budget); });
  add("strftime_now", [&budget, now](Arguments& a) { return strftime_now(a, now, budget); });
  refuse("cycler");
  refuse("lipsum");
  return all;
}

}  // namespace zi::chat
