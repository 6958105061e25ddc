#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "chat/jinja/lexer.h"
#include "chat/jinja/syntax.h"
#include "chat/values/template_error.h"

namespace zi::chat {

/// Reads expressions from tokens by Jinja2's grammar. Throws TemplateError.
class ExpressionParser {
 public:
  /// Expressions, tags and brackets that are nested deeper are refused.
  static constexpr int kMostNesting = 120;

  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

 protected:
  /// One more level, for as long as it lives.
  class Level {
   public:
    explicit Level(ExpressionParser& parser);
    ~Level() { --parser_.nesting_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    ExpressionParser& parser_;
  };

  const Token& current() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[at_ + 1 < tokens_.size() ? at_ + 1 : at_]; }
  Token next();
  bool at(Token::Type type) const { return current().type == type; }
  bool at_name(std::string_view name) const { return current().is(Token::Type::kName, name); }
  bool at_symbol(std::string_view symbol) const {
    return current().is(Token::Type::kOperator, symbol);
  }
  bool skip_name(std::string_view name);
  bool skip_symbol(std::string_view symbol);
  void expect_name(std::string_view name);
  void expect_symbol(std::string_view symbol);
  void expect(Token::Type type, std::string_view what);
  std::string any_name(std::string_view what);
  [[noreturn]] void fail(const std::string& message) const;
  [[noreturn]] void fail_unexpected() const;

  ExpressionPtr expression();  // with `a if b else c`
  ExpressionPtr disjunction();
  enum class Conditional { kYes, kNo };
  /// One expression, or several with commas as a tuple. It ends before a name of `ends`.
  ExpressionPtr tuple(Conditional conditional, std::string_view end = {});
  /// What `set` and `for` assign to: names, `ns.name` where `namespaces` says so, or a tuple.
  ExpressionPtr target(bool namespaces, std::string_view end = {});
  /// `| name(..) | ..` behind `value`, or without the first bar where `bare` says so.
  ExpressionPtr filters(ExpressionPtr value, bool bare = false);
  CallArguments call_arguments();
  /// Expressions with commas between them, as one text.
  ExpressionPtr joined_expressions();

  /// Filters and tests that nobody knows. Inside a condition (`conditional_` above 0, or `a if b`)
  /// they fail only where they are reached, as in the reference.
  std::vector<TemplateError> unknown_;
  int conditional_ = 0;
  int fors_ = 0;  // inside which `loop` cannot be assigned to
  /// Special names that were met since the last macro began.
  bool values_named_ = false, named_named_ = false, caller_named_ = false;

 private:
  using Parts = std::vector<ExpressionPtr>;
  template <typename... Ptrs>
  static Parts parts_of(Ptrs... parts) {
    Parts all;
    (all.push_back(std::move(parts)), ...);
    return all;
  }
  ExpressionPtr make(Expression::Kind kind, int line, Parts parts = {}, std::string name = {});
  static void deepen(Expression& made, const Expression* part);
  ExpressionPtr conjunction();
  ExpressionPtr negation();
  ExpressionPtr comparison();
  ExpressionPtr sum();
  ExpressionPtr concatenation();
  ExpressionPtr product();
  ExpressionPtr power();
  ExpressionPtr unary(bool with_filters = true);
  ExpressionPtr primary(bool namespaces = false);
  ExpressionPtr constant(int line, Value value);
  ExpressionPtr list();
  ExpressionPtr dict();
  ExpressionPtr postfix(ExpressionPtr value);
  ExpressionPtr suffixes(ExpressionPtr value);
  ExpressionPtr subscript(ExpressionPtr value);
  ExpressionPtr subscribed();
  ExpressionPtr call(ExpressionPtr callee);
  ExpressionPtr test(ExpressionPtr value);
  ExpressionPtr with_arguments(ExpressionPtr made, CallArguments arguments);
  bool ends_tuple(std::string_view end) const;

  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int nesting_ = 0;
};

}  // namespace zi::chat
