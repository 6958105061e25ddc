#include "chat/jinja/expression_parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <initializer_list>

#include "base/printable_text.h"
#include "chat/values/template_error.h"

namespace zi::chat {

using Kind = Expression::Kind;
using TokenType = Token::Type;

namespace {

template <typename Names>
bool one_of(std::string_view text, const Names& names) {
  return std::ranges::find(names, text) != std::end(names);
}

constexpr std::array<std::string_view, 6> kComparisons = {"==", "!=", "<", "<=", ">", ">="};
constexpr std::array<std::string_view, 4> kProducts = {"*", "/", "//", "%"};

}  // namespace

ExpressionParser::Level::Level(ExpressionParser& parser) : parser_(parser) {
  if (parser.nesting_ >= kMostNesting) {
    parser.fail(fmt::format("nested deeper than {}", kMostNesting));
  }
  ++parser.nesting_;
}

Token ExpressionParser::next() {
  Token token = current();
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}

bool ExpressionParser::skip_name(std::string_view name) {
  if (!at_name(name)) return false;
  next();
  return true;
}

bool ExpressionParser::skip_symbol(std::string_view symbol) {
  if (!at_symbol(symbol)) return false;
  next();
  return true;
}

void ExpressionParser::expect_name(std::string_view name) {
  if (!skip_name(name)) fail(fmt::format("`{}` was expected", name));
}

void ExpressionParser::expect_symbol(std::string_view symbol) {
  if (!skip_symbol(symbol)) fail(fmt::format("`{}` was expected", symbol));
}

void ExpressionParser::expect(TokenType type, std::string_view what) {
  if (!at(type)) fail(fmt::format("{} was expected", what));
  next();
}

std::string ExpressionParser::any_name(std::string_view what) {
  if (!at(TokenType::kName)) fail(fmt::format("{} was expected", what));
  return next().text;
}

void ExpressionParser::fail(const std::string& message) const {
  throw TemplateError(message, current().line);
}

void ExpressionParser::fail_unexpected() const {
  const std::string& text = current().text;
  fail(text.empty() ? "an expression was expected" : fmt::format("unexpected {}", in_quotes(text)));
}

void ExpressionParser::deepen(Expression& made, const Expression* part) {
  if (part == nullptr) return;
  made.depth = std::max(made.depth, part->depth + 1);
  if (made.depth > kMostNesting) {
    throw TemplateError(fmt::format("an expression of more than {} steps in a row", kMostNesting),
                        made.line);
  }
}

ExpressionPtr ExpressionParser::make(Kind kind, int line, Parts parts, std::string name) {
  auto made = std::make_unique<Expression>();
  made->kind = kind;
  made->line = line;
  made->name = std::move(name);
  for (const ExpressionPtr& part : parts) deepen(*made, part.get());
  made->parts = std::move(parts);
  return made;
}

ExpressionPtr ExpressionParser::with_arguments(ExpressionPtr made, CallArguments arguments) {
  for (const ExpressionPtr& value : arguments.values) deepen(*made, value.get());
  for (const auto& [name, value] : arguments.named) deepen(*made, value.get());
  deepen(*made, arguments.more_values.get());
  deepen(*made, arguments.more_named.get());
  made->arguments = std::move(arguments);
  return made;
}

ExpressionPtr ExpressionParser::expression() {
  const Level level(*this);
  const int line = current().line;
  const std::size_t unknown = unknown_.size();
  ExpressionPtr value = disjunction();
  while (skip_name("if")) {
    ExpressionPtr test = disjunction();
    ExpressionPtr other = skip_name("else") ? expression() : nullptr;
    value = make(Kind::kConditional, line,
                 parts_of(std::move(value), std::move(test), std::move(other)));
    unknown_.erase(unknown_.begin() + static_cast<std::ptrdiff_t>(unknown), unknown_.end());
  }
  return value;
}

ExpressionPtr ExpressionParser::disjunction() {
  const int line = current().line;
  Parts parts = parts_of(conjunction());
  while (skip_name("or")) parts.push_back(conjunction());
  if (parts.size() == 1) return std::move(parts.front());
  return make(Kind::kOr, line, std::move(parts));
}

ExpressionPtr ExpressionParser::conjunction() {
  const int line = current().line;
  Parts parts = parts_of(negation());
  while (skip_name("and")) parts.push_back(negation());
  if (parts.size() == 1) return std::move(parts.front());
  return make(Kind::kAnd, line, std::move(parts));
}

ExpressionPtr ExpressionParser::negation() {
  const int line = current().line;
  if (!skip_name("not")) return comparison();
  const Level level(*this);
  return make(Kind::kNot, line, parts_of(negation()));
}

ExpressionPtr ExpressionParser::comparison() {
  const int line = current().line;
  Parts parts = parts_of(sum());
  std::vector<std::string> operators;
  for (;;) {
    if (at(TokenType::kOperator) && one_of(current().text, kComparisons)) {
      operators.push_back(next().text);
    } else if (skip_name("in")) {
      operators.emplace_back("in");
    } else if (at_name("not") && ahead().is(TokenType::kName, "in")) {
      next();
      next();
      operators.emplace_back("not in");
    } else {
      break;
    }
    parts.push_back(sum());
  }
  if (operators.empty()) return std::move(parts.front());
  ExpressionPtr made = make(Kind::kCompare, line, std::move(parts));
  made->operators = std::move(operators);
  return made;
}

ExpressionPtr ExpressionParser::sum() {
  const int line = current().line;
  ExpressionPtr left = concatenation();
  while (at_symbol("+") || at_symbol("-")) {
    const std::string symbol = next().text;
    left = make(Kind::kBinary, line, parts_of(std::move(left), concatenation()), symbol);
  }
  return left;
}

ExpressionPtr ExpressionParser::concatenation() {
  const int line = current().line;
  Parts parts = parts_of(product());
  while (skip_symbol("~")) parts.push_back(product());
  if (parts.size() == 1) return std::move(parts.front());
  return make(Kind::kConcat, line, std::move(parts));
}

ExpressionPtr ExpressionParser::product() {
  const int line = current().line;
  ExpressionPtr left = power();
  while (at(TokenType::kOperator) && one_of(current().text, kProducts)) {
    const std::string symbol = next().text;
    left = make(Kind::kBinary, line, parts_of(std::move(left), power()), symbol);
  }
  return left;
}

ExpressionPtr ExpressionParser::power() {
  const int line = current().line;
  ExpressionPtr left = unary();
  while (skip_symbol("**")) {
    left = make(Kind::kBinary, line, parts_of(std::move(left), unary()), "**");
  }
  return left;
}

ExpressionPtr ExpressionParser::unary(bool with_filters) {
  const int line = current().line;
  ExpressionPtr value;
  if (at_symbol("-") || at_symbol("+")) {
    const Level level(*this);
    const std::string symbol = next().text;
    value = make(Kind::kUnary, line, parts_of(unary(false)), symbol);
  } else {
    value = primary();
  }
  value = postfix(std::move(value));
  return with_filters ? suffixes(std::move(value)) : std::move(value);
}

ExpressionPtr ExpressionParser::constant(int line, Value value) {
  ExpressionPtr made = make(Kind::kConstant, line);
  made->constant = std::move(value);
  return made;
}

ExpressionPtr ExpressionParser::primary(bool namespaces) {
  const int line = current().line;
  if (at(TokenType::kName)) {
    const std::string name = next().text;
    if (name == "true" || name == "True") return constant(line, true);
    if (name == "false" || name == "False") return constant(line, false);
    if (name == "none" || name == "None") return constant(line, None{});
    if (namespaces && skip_symbol(".")) {
      ExpressionPtr made = make(Kind::kNamespace, line, {}, name);
      made->attribute = any_name("a name");
      return made;
    }
    values_named_ = values_named_ || name == "varargs";
    named_named_ = named_named_ || name == "kwargs";
    caller_named_ = caller_named_ || name == "caller";
    return make(Kind::kName, line, {}, name);
  }
  if (at(TokenType::kString)) {
    std::string text;
    while (at(TokenType::kString)) text += next().text;
    return constant(line, Value::text(std::move(text)));
  }
  if (at(TokenType::kInteger)) return constant(line, next().integer);
  if (at(TokenType::kFloat)) return constant(line, next().real);
  if (skip_symbol("(")) {
    ExpressionPtr made;
    if (at_symbol(")")) {
      made = make(Kind::kTuple, line);
    } else {
      made = tuple(Conditional::kYes);
    }
    expect_symbol(")");
    return made;
  }
  if (at_symbol("[")) return list();
  if (at_symbol("{")) return dict();
  fail_unexpected();
}

bool ExpressionParser::ends_tuple(std::string_view end) const {
  return at(TokenType::kPrintEnd) || at(TokenType::kBlockEnd) || at_symbol(")") ||
         (!end.empty() && at_name(end));
}

ExpressionPtr ExpressionParser::tuple(Conditional conditional, std::string_view end) {
  const int line = current().line;
  Parts parts;
  bool is_tuple = false;
  for (;;) {
    if (!parts.empty() && ends_tuple(end)) break;
    parts.push_back(conditional == Conditional::kYes ? expression() : disjunction());
    if (!skip_symbol(",")) break;
    is_tuple = true;
  }
  if (!is_tuple) return std::move(parts.front());
  return make(Kind::kTuple, line, std::move(parts));
}

ExpressionPtr ExpressionParser::joined_expressions() {
  const int line = current().line;
  Parts parts = parts_of(expression());
  while (skip_symbol(",")) parts.push_back(expression());
  return make(Kind::kConcat, line, std::move(parts));
}

ExpressionPtr ExpressionParser::target(bool namespaces, std::string_view end) {
  const int line = current().line;
  Parts parts;
  bool is_tuple = false;
  for (;;) {
    if (!parts.empty() && ends_tuple(end)) break;
    // `(a, b)` in brackets, inside another one or not.
    ExpressionPtr part;
    if (skip_symbol("(")) {
      const Level level(*this);
      part = target(namespaces);
      expect_symbol(")");
    } else {
      part = primary(namespaces);
    }
    const bool assignable =
        part->kind == Kind::kName || part->kind == Kind::kNamespace || part->kind == Kind::kTuple;
    if (!assignable) fail("this cannot be assigned to");
    if (fors_ > 0 && part->kind == Kind::kName && part->name == "loop") {
      fail("`loop` cannot be assigned to inside a `for`");
    }
    parts.push_back(std::move(part));
    if (!skip_symbol(",")) break;
    is_tuple = true;
  }
  if (!is_tuple) return std::move(parts.front());
  return make(Kind::kTuple, line, std::move(parts));
}

}  // namespace zi::chat
