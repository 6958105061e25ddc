#include "chat/jinja/evaluator.h"

#include <fmt/format.h>

#include "base/printable_text.h"
#include "chat/library/attributes.h"
#include "chat/library/filters.h"
#include "chat/library/functions.h"
#include "chat/library/tests.h"
#include "chat/values/operators.h"
#include "chat/values/template_error.h"

namespace zi::chat {

using Kind = Expression::Kind;

namespace {

constexpr std::size_t kScopeBytes = 128;

}  // namespace

Evaluator::Evaluator(const Dict& variables, std::time_t now)
    : variables_(variables), globals_(global_functions(now, namespaces_, budget_)) {}

Evaluator::~Evaluator() {
  // Namespaces, scopes and the functions in them may refer to each other in circles.
  for (const auto& space : namespaces_) space->values.clear();
  for (const ScopePtr& scope : captured_) scope->clear();
}

Evaluator::ScopePtr Evaluator::scope_in(const ScopePtr& parent) {
  return budget_.hold(Scope(parent), kScopeBytes);
}

void Evaluator::capture(const ScopePtr& scope) {
  // Those around it as well: they may hold functions that refer to this one.
  for (ScopePtr at = scope; at != nullptr && !std::exchange(at->captured, true); at = at->parent) {
    captured_.push_back(at);
  }
}

Value Evaluator::value(const Expression& e, const ScopePtr& scope) {
  if (e.kind == Kind::kConstant) return e.constant;
  const Budget::Nested nested(budget_);
  line_ = e.line;
  switch (e.kind) {
    case Kind::kName:
      return name(e.name, *scope);
    case Kind::kTuple:
      return budget_.tuple(values(e.parts, scope));
    case Kind::kList:
      return budget_.list(values(e.parts, scope));
    case Kind::kDict:
      return dict(e, scope);
    case Kind::kConditional:
      return conditional(e, scope);
    case Kind::kOr:
    case Kind::kAnd:
      return operation(e, scope);
    case Kind::kNot:
      return !truth(value(*e.parts[0], scope));
    case Kind::kCompare:
      return compared(e, scope);
    case Kind::kBinary:
    case Kind::kUnary:
      return operation(e, scope);
    case Kind::kConcat:
      return concatenated(e, scope);
    case Kind::kAttribute: {
      const Value of = value(*e.parts[0], scope);
      line_ = e.line;
      return attribute(of, e.attribute, budget_);
    }
    case Kind::kItem:
      return item(e, scope);
    case Kind::kCall:
      return call(e, nullptr, scope);
    case Kind::kFilter:
      return filtered(e, Value(), scope);
    case Kind::kTest:
      return tested(e, scope);
    default:
      throw TemplateError("this expression is not supported here", e.line);
  }
}

Value Evaluator::name(std::string_view name, Scope& scope) {
  budget_.step(scope.level() / 8);
  if (const Value* const found = scope.find(name)) return *found;
  if (const Value* const found = variables_.find(name)) return *found;
  const auto global = globals_.find(name);
  if (global != globals_.end()) return global->second;
  if (name == "self") throw TemplateError("`self` is not supported");
  return Value::undefined(fmt::format("{} is undefined", in_quotes(name)));
}

std::vector<Value> Evaluator::values(const std::vector<ExpressionPtr>& parts,
                                     const ScopePtr& scope) {
  std::vector<Value> all;
  all.reserve(parts.size());
  for (const ExpressionPtr& part : parts) all.push_back(value(*part, scope));
  return all;
}

Value Evaluator::conditional(const Expression& e, const ScopePtr& scope) {
  if (truth(value(*e.parts[1], scope))) return value(*e.parts[0], scope);
  if (e.parts[2] != nullptr) return value(*e.parts[2], scope);
  return Value::undefined("an inline `if` was false and has no `else`");
}

Value Evaluator::operation(const Expression& e, const ScopePtr& scope) {
  if (e.kind == Kind::kOr || e.kind == Kind::kAnd) {
    Value last;
    for (const ExpressionPtr& part : e.parts) {
      last = value(*part, scope);
      if (truth(last) == (e.kind == Kind::kOr)) break;
    }
    return last;
  }
  const Value left = value(*e.parts[0], scope);
  if (e.kind == Kind::kUnary) return unary(e.name, left);
  const Value right = value(*e.parts[1], scope);
  line_ = e.line;
  return binary(e.name, left, right, budget_);
}

bool Evaluator::compared(const Expression& e, const ScopePtr& scope) {
  Value left = value(*e.parts[0], scope);
  for (std::size_t i = 0; i < e.operators.size(); ++i) {
    Value right = value(*e.parts[i + 1], scope);
    line_ = e.line;
    if (!compare(e.operators[i], left, right, budget_)) return false;
    left = std::move(right);
  }
  return true;
}

Value Evaluator::concatenated(const Expression& e, const ScopePtr& scope) {
  std::string all;
  for (const ExpressionPtr& part : e.parts) {
    all += to_text(value(*part, scope), budget_);
    budget_.check(all.size());
  }
  return budget_.text(std::move(all));
}

Value Evaluator::dict(const Expression& e, const ScopePtr& scope) {
  Dict made;
  for (std::size_t i = 0; i < e.parts.size(); i += 2) {
    Value key = value(*e.parts[i], scope);
    budget_.search(key);
    made.set(std::move(key), value(*e.parts[i + 1], scope));
  }
  return budget_.dict(std::move(made));
}

Value Evaluator::item(const Expression& e, const ScopePtr& scope) {
  const Value of = value(*e.parts[0], scope);
  const Expression& index = *e.parts[1];
  if (index.kind != Kind::kSlice) {
    const Value at = value(index, scope);
    line_ = e.line;
    return subscript(of, at, budget_);
  }
  std::vector<Value> bounds(3);
  for (std::size_t i = 0; i < bounds.size(); ++i) {
    if (index.parts[i] != nullptr) bounds[i] = value(*index.parts[i], scope);
  }
  line_ = e.line;
  return slice(of, bounds[0], bounds[1], bounds[2], budget_);
}

Arguments Evaluator::arguments(const CallArguments& written, const ScopePtr& scope) {
  Arguments all;
  all.values = values(written.values, scope);
  for (const auto& [name, given] : written.named) {
    all.named.emplace_back(name, value(*given, scope));
  }
  if (written.more_values != nullptr) {
    for (Value& more : items_of(value(*written.more_values, scope), budget_)) {
      all.values.push_back(std::move(more));
    }
  }
  if (written.more_named != nullptr) {
    const Value more = value(*written.more_named, scope);
    if (more.dict() == nullptr) fail_type("`**` needs a dict, not", more);
    for (const auto& [key, given] : more.dict()->items()) {
      if (key.text() == nullptr) fail_type("the name of an argument cannot be", key);
      all.named.emplace_back(key.text()->text, given);
    }
    budget_.step(std::ssize(all.named));
    if (all.named.size() > CallArguments::kMostNamed) {
      throw TemplateError(
          fmt::format("a call with more than {} named arguments", CallArguments::kMostNamed));
    }
  }
  return all;
}

Value Evaluator::call(const Expression& e, const Value* caller, const ScopePtr& scope) {
  const Value callee = value(*e.parts[0], scope);
  Arguments given = arguments(e.arguments, scope);
  if (caller != nullptr) given.named.emplace_back("caller", *caller);
  line_ = e.line;
  if (const auto* function = callee.get<std::shared_ptr<Function>>()) {
    return (*function)->call(given);
  }
  if (const auto* loop = callee.get<std::shared_ptr<Loop>>()) {
    if (!(*loop)->recurse) throw TemplateError("a loop that is called must be `recursive`");
    if (given.values.size() != 1 || !given.named.empty()) {
      throw TemplateError("a loop is called with its items alone");
    }
    return (*loop)->recurse(given.values.front());
  }
  fail_type("nobody can call", callee);
}

Value Evaluator::called(const Expression& e, const Value& caller, const ScopePtr& scope) {
  const Budget::Nested nested(budget_);
  return call(e, &caller, scope);
}

Value Evaluator::filtered(const Expression& e, const Value& text, const ScopePtr& scope) {
  const Budget::Nested nested(budget_);
  Value of = text;
  if (e.parts[0] != nullptr) {
    of = e.parts[0]->kind == Kind::kFilter ? filtered(*e.parts[0], text, scope)
                                           : value(*e.parts[0], scope);
  }
  const Filter filter = find_filter(e.name);
  if (filter == nullptr) throw TemplateError(unknown_filter(e.name), e.line);
  const Arguments given = arguments(e.arguments, scope);
  line_ = e.line;
  return filter(of, given, budget_);
}

bool Evaluator::tested(const Expression& e, const ScopePtr& scope) {
  const Test test = find_test(e.name);
  if (test == nullptr) throw TemplateError(unknown_test(e.name), e.line);
  const Value of = value(*e.parts[0], scope);
  const Arguments given = arguments(e.arguments, scope);
  line_ = e.line;
  return test(of, given, budget_);
}

void Evaluator::assign(const Expression& target, const Value& value, const ScopePtr& scope) {
  line_ = target.line;
  if (target.kind == Kind::kName) {
    scope->set(target.name, value);
  } else if (target.kind == Kind::kNamespace) {
    const Value holder = name(target.name, *scope);
    const auto* const space = holder.get<std::shared_ptr<Namespace>>();
    if (space == nullptr) {
      throw TemplateError(
          fmt::format("{} is no namespace: its attributes cannot be set", in_quotes(target.name)));
    }
    (*space)->values.insert_or_assign(target.attribute, value);
  } else {
    const std::vector<Value> items = items_of(value, budget_);
    if (items.size() != target.parts.size()) {
      throw TemplateError(
          fmt::format("{} values cannot be given to {} names", items.size(), target.parts.size()));
    }
    for (std::size_t i = 0; i < items.size(); ++i) assign(*target.parts[i], items[i], scope);
  }
}

}  // namespace zi::chat
