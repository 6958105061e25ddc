#include <fmt/format.h>

#include <algorithm>

#include "chat/library/attributes.h"
#include "chat/values/operators.h"
#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

/// Takes an item more from the source of a loop. False at its end.
bool look_ahead(Loop& loop) {
  if (loop.ended) return false;
  std::optional<Value> next = loop.pull();
  if (!next) {
    loop.ended = true;
    return false;
  }
  loop.ahead.insert(loop.ahead.begin(), std::move(*next));
  return true;
}

std::int64_t length_of(Loop& loop, Budget& budget) {
  if (!loop.length) {
    std::vector<Value> rest;
    while (!loop.ended) {
      budget.step();
      std::optional<Value> next = loop.pull();
      if (!next) break;
      budget.check(rest.size() * sizeof(Value));
      rest.push_back(std::move(*next));
    }
    loop.ended = true;
    std::ranges::reverse(rest);  // the next one is at the end
    rest.insert(rest.end(), loop.ahead.begin(), loop.ahead.end());
    loop.ahead = std::move(rest);
    loop.length = loop.index0 + 1 + std::ssize(loop.ahead);
  }
  return *loop.length;
}

bool simple(const Value& value) {
  return value.text() != nullptr || value.is_none() || value.is_undefined() ||
         value.integer().has_value() || value.get<double>() != nullptr;
}

Value cycle(const Loop& loop, const Arguments& arguments) {
  if (arguments.values.empty()) throw TemplateError("`loop.cycle` needs values");
  return arguments.values[static_cast<std::size_t>(loop.index0) % arguments.values.size()];
}

Value changed(Loop& loop, const Arguments& arguments, Budget& budget) {
  if (!std::ranges::all_of(arguments.values, simple)) {
    throw TemplateError("`loop.changed` is supported for texts and numbers only");
  }
  Value now = budget.tuple(arguments.values);
  const bool same = loop.changed && equal(*loop.changed, now, budget);
  if (!same) loop.changed = std::move(now);
  return !same;
}

}  // namespace

std::optional<Value> advance(Loop& loop) {
  if (loop.ahead.empty() && !look_ahead(loop)) return std::nullopt;
  ++loop.index0;
  loop.before = std::exchange(loop.current, std::move(loop.ahead.back()));
  loop.ahead.pop_back();
  return loop.current;
}

std::optional<Value> loop_field(const std::shared_ptr<Loop>& loop, std::string_view name,
                                Budget& budget) {
  Loop& l = *loop;
  if (name == "index") return l.index0 + 1;
  if (name == "index0") return l.index0;
  if (name == "first") return l.index0 == 0;
  if (name == "last") return l.ahead.empty() && !look_ahead(l);
  if (name == "length") return length_of(l, budget);
  if (name == "revindex") return length_of(l, budget) - l.index0;
  if (name == "revindex0") return length_of(l, budget) - l.index0 - 1;
  if (name == "depth") return l.depth0 + 1;
  if (name == "depth0") return l.depth0;
  if (name == "previtem") {
    return l.index0 == 0 ? Value::undefined("there is no previous item") : l.before;
  }
  if (name == "nextitem") {
    if (l.ahead.empty() && !look_ahead(l)) return Value::undefined("there is no next item");
    return l.ahead.back();
  }
  if (name == "cycle") {
    return budget.function(
        "cycle", [loop](Arguments& arguments) { return cycle(*loop, arguments); }, loop);
  }
  if (name == "changed") {
    const auto call = [loop, &budget](Arguments& arguments) {
      return changed(*loop, arguments, budget);
    };
    return budget.function("changed", call, loop);
  }
  return std::nullopt;
}

}  // namespace zi::chat
