#pragma once

#include <ctime>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "chat/jinja/scope.h"
#include "chat/jinja/syntax.h"
#include "chat/values/budget.h"

namespace zi::chat {

/// Computes expressions, as Jinja2 and Python do. Throws TemplateError.
class Evaluator {
 public:
  using ScopePtr = std::shared_ptr<Scope>;

  /// `variables` are what the template is given; they outlive this.
  Evaluator(const Dict& variables, std::time_t now);
  ~Evaluator();
  Evaluator(const Evaluator&) = delete;
  Evaluator& operator=(const Evaluator&) = delete;

  Value value(const Expression& e, const ScopePtr& scope);
  /// A chain of filters; `text` is what the first one is given where the chain has no value.
  Value filtered(const Expression& e, const Value& text, const ScopePtr& scope);
  /// Calls `e`, a call, with one more named argument.
  Value called(const Expression& e, const Value& caller, const ScopePtr& scope);
  void assign(const Expression& target, const Value& value, const ScopePtr& scope);

  ScopePtr scope_in(const ScopePtr& parent);
  /// Keeps a scope that a function refers to until the end, when it is emptied: the function may be
  /// one of its values.
  void capture(const ScopePtr& scope);

  Budget& budget() { return budget_; }
  int line() const { return line_; }
  void at_line(int line) { line_ = line; }

 private:
  Value name(std::string_view name, Scope& scope);
  Value conditional(const Expression& e, const ScopePtr& scope);
  bool compared(const Expression& e, const ScopePtr& scope);
  Value concatenated(const Expression& e, const ScopePtr& scope);
  Value dict(const Expression& e, const ScopePtr& scope);
  Value item(const Expression& e, const ScopePtr& scope);
  Value call(const Expression& e, const Value* caller, const ScopePtr& scope);
  bool tested(const Expression& e, const ScopePtr& scope);
  Value operation(const Expression& e, const ScopePtr& scope);
  std::vector<Value> values(const std::vector<ExpressionPtr>& parts, const ScopePtr& scope);
  Arguments arguments(const CallArguments& written, const ScopePtr& scope);

  Budget budget_;  // outlives all values
  const Dict& variables_;
  std::vector<std::shared_ptr<Namespace>> namespaces_;
  std::vector<ScopePtr> captured_;
  std::map<std::string, Value, std::less<>> globals_;
  int line_ = 0;
};

}  // namespace zi::chat
