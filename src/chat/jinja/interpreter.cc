#include "chat/jinja/interpreter.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/printable_text.h"
#include "chat/jinja/evaluator.h"
#include "chat/library/attributes.h"
#include "chat/values/operators.h"
#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

using Kind = Statement::Kind;
using ScopePtr = Evaluator::ScopePtr;

enum class Flow { kNext, kBreak, kContinue };

class Interpreter {
 public:
  Interpreter(const Dict& variables, std::time_t now) : evaluator_(variables, now) {}

  std::string run(const Body& body) {
    try {
      Output out(budget());
      run(body, evaluator_.scope_in(nullptr), out);
      return out.take();
    } catch (const RaisedByTemplate& raised) {
      throw RaisedByTemplate(raised.what(), evaluator_.line());
    } catch (const TemplateError& error) {
      throw TemplateError(error.what(), error.line() > 0 ? error.line() : evaluator_.line());
    }
  }

 private:
  Budget& budget() { return evaluator_.budget(); }
  Value value(const ExpressionPtr& e, const ScopePtr& scope) { return evaluator_.value(*e, scope); }

  Flow run(const Body& body, const ScopePtr& scope, Output& out) {
    for (const auto& statement : body) {
      const Flow flow = run(*statement, scope, out);
      if (flow != Flow::kNext) return flow;
    }
    return Flow::kNext;
  }

  Flow run(const Statement& s, const ScopePtr& scope, Output& out) {
    const Budget::Nested nested(budget());
    evaluator_.at_line(s.line);
    switch (s.kind) {
      case Kind::kText:
        out.add(s.text);
        return Flow::kNext;
      case Kind::kPrint:
        print(value(s.expression, scope), out);
        return Flow::kNext;
      case Kind::kIf:
        return choose(s, scope, out);
      case Kind::kFor:
        return loop(s, scope, out, value(s.expression, scope), 0);
      case Kind::kSet:
        evaluator_.assign(*s.target, value(s.expression, scope), scope);
        return Flow::kNext;
      case Kind::kSetBlock:
      case Kind::kFilter:
        return captured(s, scope, out);
      case Kind::kMacro:
        scope->set(s.macro.name, function(s.macro, scope));
        return Flow::kNext;
      case Kind::kCall:
        print(evaluator_.called(*s.expression, function(s.macro, scope), scope), out);
        return Flow::kNext;
      case Kind::kWith: {
        const ScopePtr inner = evaluator_.scope_in(scope);
        for (const auto& [target, expression] : s.assignments) {
          evaluator_.assign(*target, value(expression, scope), inner);
        }
        return run(s.body, inner, out);
      }
      case Kind::kScope:
        return run(s.body, evaluator_.scope_in(scope), out);
      case Kind::kBreak:
        return Flow::kBreak;
      case Kind::kContinue:
        return Flow::kContinue;
    }
    return Flow::kNext;
  }

  void print(const Value& value, Output& out) {
    if (const Text* text = value.text()) {
      out.add(text->text);
    } else {
      out.add(to_text(value, budget()));
    }
  }

  Flow choose(const Statement& s, const ScopePtr& scope, Output& out) {
    for (const Statement::Branch& branch : s.branches) {
      if (truth(value(branch.test, scope))) return run(branch.body, scope, out);
    }
    return run(s.other, scope, out);
  }

  /// A loop while it runs. Afterwards it refers to no scope: a value that holds it may be one of
  /// the scope's, and chains of loops and scopes would have no end.
  class ActiveLoop {
   public:
    explicit ActiveLoop(Loop& loop) : loop_(loop) {}
    ~ActiveLoop() {
      if (loop_.pull) {
        loop_.pull = []() -> std::optional<Value> {
          throw TemplateError("what a loop has not visited is gone once it is left");
        };
      }
      if (loop_.recurse) {
        loop_.recurse = [](const Value&) -> Value {
          throw TemplateError("a loop is called after its end");
        };
      }
    }
    ActiveLoop(const ActiveLoop&) = delete;
    ActiveLoop& operator=(const ActiveLoop&) = delete;

   private:
    Loop& loop_;
  };

  /// A block whose text is a value: of `set`, or of `filter`.
  Flow captured(const Statement& s, const ScopePtr& scope, Output& out) {
    Output text(budget());
    const Flow flow = run(s.body, evaluator_.scope_in(scope), text);
    if (flow != Flow::kNext) return flow;
    Value made = budget().text(text.take());
    if (s.filter != nullptr) made = evaluator_.filtered(*s.filter, made, scope);
    if (s.kind == Kind::kFilter) {
      print(made, out);
    } else {
      evaluator_.assign(*s.target, made, scope);
    }
    return Flow::kNext;
  }

  /// The items of a `for` with a test, one by one: those for which it holds when it comes to them.
  std::function<std::optional<Value>()> source(const Statement& s, const ScopePtr& scope,
                                               std::vector<Value> items) {
    return [this, &s, scope, items = std::move(items),
            at = std::size_t{0}]() mutable -> std::optional<Value> {
      while (at < items.size()) {
        Value item = std::move(items[at++]);
        const ScopePtr inner = evaluator_.scope_in(scope);
        evaluator_.assign(*s.target, item, inner);
        if (truth(value(s.test, inner))) return item;
      }
      return std::nullopt;
    };
  }

  Flow loop(const Statement& s, const ScopePtr& scope, Output& out, const Value& items,
            std::int64_t depth) {
    const Budget::Nested nested(budget());
    Loop made;
    std::vector<Value> all = items_of(items, budget());
    const std::size_t bytes = kLoopBytes + all.size() * sizeof(Value);
    for (const Value& item : all) made.depth = std::max(made.depth, item.depth() + 1);
    Budget::check_depth(made.depth);
    if (s.test == nullptr) {
      made.length = std::ssize(all);
      std::ranges::reverse(all);
      made.ahead = std::move(all);
      made.ended = true;
    } else {
      made.pull = source(s, scope, std::move(all));
    }
    made.depth0 = depth;
    if (s.recursive) {
      made.recurse = [this, &s, scope, depth](const Value& inner) {
        Output text(budget());
        loop(s, scope, text, inner, depth + 1);
        return budget().text(text.take());
      };
    }
    const std::shared_ptr<Loop> held = budget().hold(std::move(made), bytes);
    const ActiveLoop active(*held);
    bool any = false;  // seen at the end of a body, as in the reference
    while (const std::optional<Value> item = advance(*held)) {
      const ScopePtr inner = evaluator_.scope_in(scope);
      inner->set("loop", held);
      evaluator_.assign(*s.target, *item, inner);
      const Flow flow = run(s.body, inner, out);
      if (flow == Flow::kBreak) break;
      any = any || flow == Flow::kNext;
    }
    return any ? Flow::kNext : run(s.other, evaluator_.scope_in(scope), out);
  }

  Value function(const MacroDefinition& macro, const ScopePtr& scope) {
    evaluator_.capture(scope);
    // By address: the scope may hold this very function.
    return budget().function(
        macro.name, [this, &macro, scope](Arguments& given) { return call(macro, scope, given); });
  }

  Value call(const MacroDefinition& macro, const ScopePtr& scope, Arguments& given) {
    const Budget::Nested nested(budget());
    const int line = evaluator_.line();
    const ScopePtr inner = evaluator_.scope_in(scope);
    bind(macro, inner, given);
    Output text(budget());
    run(macro.body, inner, text);
    evaluator_.at_line(line);
    return budget().text(text.take());
  }

  bool take_named(Arguments& given, std::string_view name, Value& value) {
    budget().step(std::ssize(given.named) / 32);
    const auto found = std::ranges::find(
        given.named, name, [](const auto& named) { return std::string_view(named.first); });
    if (found == given.named.end()) return false;
    value = std::move(found->second);
    given.named.erase(found);
    return true;
  }

  void bind(const MacroDefinition& macro, const ScopePtr& inner, Arguments& given) {
    const std::size_t count = macro.parameters.size();
    const std::size_t without_default = count - macro.defaults.size();
    for (std::size_t i = 0; i < count; ++i) {
      const std::string& name = macro.parameters[i];
      Value argument;
      if (i < given.values.size()) {
        argument = given.values[i];
      } else if (!take_named(given, name, argument)) {
        argument =
            i >= without_default
                ? value(macro.defaults[i - without_default], inner)
                : Value::undefined(fmt::format("the parameter {} was not given", in_quotes(name)));
      }
      inner->set(name, std::move(argument));
    }
    if (macro.uses_caller &&
        std::ranges::find(macro.parameters, "caller") == macro.parameters.end()) {
      Value caller;
      if (!take_named(given, "caller", caller)) {
        caller = Value::undefined("`caller` is undefined: no `call` block called the macro");
      }
      inner->set("caller", std::move(caller));
    }
    if (macro.uses_named) {
      Dict rest;
      for (auto& [name, value] : given.named) rest.set(Value::text(name), value);
      inner->set("kwargs", budget().dict(std::move(rest)));
    } else if (!given.named.empty()) {
      throw TemplateError(fmt::format("the macro {} has no parameter {}", in_quotes(macro.name),
                                      in_quotes(given.named.front().first)));
    }
    if (macro.uses_values) {
      std::vector<Value> rest;
      for (std::size_t i = count; i < given.values.size(); ++i) rest.push_back(given.values[i]);
      inner->set("varargs", budget().tuple(std::move(rest)));
    } else if (given.values.size() > count) {
      throw TemplateError(
          fmt::format("the macro {} takes at most {} arguments", in_quotes(macro.name), count));
    }
  }

  static constexpr std::size_t kLoopBytes = 512;

  Evaluator evaluator_;
};

}  // namespace

std::string render(const Body& body, const Dict& variables, std::time_t now) {
  return Interpreter(variables, now).run(body);
}

}  // namespace zi::chat
