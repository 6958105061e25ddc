#include <fmt/format.h>

#include "chat/jinja/expression_parser.h"
#include "chat/library/filters.h"
#include "chat/library/tests.h"
#include "chat/values/template_error.h"

namespace zi::chat {

using Kind = Expression::Kind;
using TokenType = Token::Type;

ExpressionPtr ExpressionParser::list() {
  const int line = next().line;
  Parts parts;
  while (!at_symbol("]")) {
    if (!parts.empty()) expect_symbol(",");
    if (at_symbol("]")) break;
    parts.push_back(expression());
  }
  expect_symbol("]");
  return make(Kind::kList, line, std::move(parts));
}

ExpressionPtr ExpressionParser::dict() {
  const int line = next().line;
  Parts parts;
  while (!at_symbol("}")) {
    if (!parts.empty()) expect_symbol(",");
    if (at_symbol("}")) break;
    parts.push_back(expression());
    expect_symbol(":");
    parts.push_back(expression());
  }
  expect_symbol("}");
  return make(Kind::kDict, line, std::move(parts));
}

ExpressionPtr ExpressionParser::postfix(ExpressionPtr value) {
  for (;;) {
    if (at_symbol(".") || at_symbol("[")) {
      value = subscript(std::move(value));
    } else if (at_symbol("(")) {
      value = call(std::move(value));
    } else {
      return value;
    }
  }
}

ExpressionPtr ExpressionParser::suffixes(ExpressionPtr value) {
  for (;;) {
    if (at_symbol("|")) {
      value = filters(std::move(value));
    } else if (at_name("is")) {
      value = test(std::move(value));
    } else if (at_symbol("(")) {
      value = call(std::move(value));
    } else {
      return value;
    }
  }
}

ExpressionPtr ExpressionParser::subscript(ExpressionPtr value) {
  const int line = current().line;
  if (skip_symbol(".")) {
    if (at(TokenType::kInteger)) {
      ExpressionPtr index = constant(line, next().integer);
      return make(Kind::kItem, line, parts_of(std::move(value), std::move(index)));
    }
    ExpressionPtr made = make(Kind::kAttribute, line, parts_of(std::move(value)));
    made->attribute = any_name("a name or a number");
    return made;
  }
  expect_symbol("[");
  Parts indices;
  while (!at_symbol("]")) {
    if (!indices.empty()) expect_symbol(",");
    indices.push_back(subscribed());
  }
  expect_symbol("]");
  ExpressionPtr index = indices.size() == 1 ? std::move(indices.front())
                                            : make(Kind::kTuple, line, std::move(indices));
  return make(Kind::kItem, line, parts_of(std::move(value), std::move(index)));
}

ExpressionPtr ExpressionParser::subscribed() {
  const int line = current().line;
  ExpressionPtr begin, end, step;
  if (!skip_symbol(":")) {
    begin = expression();
    if (!skip_symbol(":")) return begin;
  }
  const auto ends = [&] { return at_symbol("]") || at_symbol(","); };
  if (!at_symbol(":") && !ends()) end = expression();
  if (skip_symbol(":") && !ends()) step = expression();
  return make(Kind::kSlice, line, parts_of(std::move(begin), std::move(end), std::move(step)));
}

CallArguments ExpressionParser::call_arguments() {
  CallArguments arguments;
  expect_symbol("(");
  bool comma = false;
  const auto ensure = [&](bool fits) {
    if (!fits) fail("the arguments of a call are in an order that Python does not allow");
  };
  while (!at_symbol(")")) {
    if (comma) {
      expect_symbol(",");
      if (at_symbol(")")) break;
    }
    if (skip_symbol("*")) {
      ensure(!arguments.more_values && !arguments.more_named);
      arguments.more_values = expression();
    } else if (skip_symbol("**")) {
      ensure(!arguments.more_named);
      arguments.more_named = expression();
    } else if (at(TokenType::kName) && ahead().is(TokenType::kOperator, "=")) {
      ensure(!arguments.more_named);
      std::string name = next().text;
      next();
      if (arguments.named.size() == CallArguments::kMostNamed) {
        fail(fmt::format("a call with more than {} named arguments", CallArguments::kMostNamed));
      }
      for (const auto& [other, value] : arguments.named) ensure(other != name);
      arguments.named.emplace_back(std::move(name), expression());
    } else {
      ensure(!arguments.more_values && !arguments.more_named && arguments.named.empty());
      arguments.values.push_back(expression());
    }
    comma = true;
  }
  expect_symbol(")");
  return arguments;
}

ExpressionPtr ExpressionParser::call(ExpressionPtr callee) {
  const int line = current().line;
  ExpressionPtr made = make(Kind::kCall, line, parts_of(std::move(callee)));
  return with_arguments(std::move(made), call_arguments());
}

ExpressionPtr ExpressionParser::filters(ExpressionPtr value, bool bare) {
  while (bare || skip_symbol("|")) {
    bare = false;
    const int line = current().line;
    std::string name = any_name("the name of a filter");
    while (skip_symbol(".")) name += "." + any_name("a name");
    if (conditional_ == 0 && find_filter(name) == nullptr) {
      unknown_.emplace_back(unknown_filter(name), line);
    }
    ExpressionPtr made = make(Kind::kFilter, line, parts_of(std::move(value)), std::move(name));
    CallArguments arguments = at_symbol("(") ? call_arguments() : CallArguments();
    value = with_arguments(std::move(made), std::move(arguments));
  }
  return value;
}

ExpressionPtr ExpressionParser::test(ExpressionPtr value) {
  const int line = next().line;  // `is`
  const bool negated = skip_name("not");
  std::string name = any_name("the name of a test");
  while (skip_symbol(".")) name += "." + any_name("a name");
  if (conditional_ == 0 && find_test(name) == nullptr) {
    unknown_.emplace_back(unknown_test(name), line);
  }
  CallArguments arguments;
  const bool value_follows = at(TokenType::kName) || at(TokenType::kString) ||
                             at(TokenType::kInteger) || at(TokenType::kFloat) || at_symbol("[") ||
                             at_symbol("{");
  if (at_symbol("(")) {
    arguments = call_arguments();
  } else if (value_follows && !at_name("else") && !at_name("or") && !at_name("and")) {
    if (at_name("is")) fail("tests with `is` cannot be chained");
    arguments.values.push_back(postfix(primary()));
  }
  ExpressionPtr made = make(Kind::kTest, line, parts_of(std::move(value)), std::move(name));
  made = with_arguments(std::move(made), std::move(arguments));
  return negated ? make(Kind::kNot, line, parts_of(std::move(made))) : std::move(made);
}

}  // namespace zi::chat
