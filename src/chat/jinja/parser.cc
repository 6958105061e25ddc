#include "chat/jinja/parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <initializer_list>

#include "base/printable_text.h"
#include "chat/jinja/expression_parser.h"
#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

using Kind = Statement::Kind;
using TokenType = Token::Type;
using StatementPtr = std::unique_ptr<Statement>;
using Ends = std::initializer_list<std::string_view>;

/// Tags of Jinja2 that chat templates do not use: they load other templates, or change how text is
/// escaped.
constexpr std::array<std::string_view, 9> kUnsupported = {
    "autoescape", "block", "extends", "from", "import", "include", "trans", "do", "debug"};

class Parser : public ExpressionParser {
 public:
  explicit Parser(std::string_view source) : ExpressionParser(tokenize(source)) {}

  Body run() {
    Body body = statements({});
    if (!at(TokenType::kEnd)) fail("unexpected end tag");
    if (!unknown_.empty()) throw unknown_.front();
    return body;
  }

 private:
  static StatementPtr make(Kind kind, int line) {
    auto made = std::make_unique<Statement>();
    made->kind = kind;
    made->line = line;
    return made;
  }

  bool at_end(const Ends& ends) const {
    return at(TokenType::kName) && std::ranges::find(ends, current().text) != ends.end();
  }

  /// Statements up to the tag whose name is one of `ends`: that name is then the current token.
  Body statements(const Ends& ends) {
    const Level level(*this);
    Body body;
    while (!at(TokenType::kEnd)) {
      const int line = current().line;
      if (at(TokenType::kData)) {
        body.push_back(make(Kind::kText, line));
        body.back()->text = next().text;
      } else if (at(TokenType::kPrintBegin)) {
        next();
        body.push_back(make(Kind::kPrint, line));
        body.back()->expression = tuple(Conditional::kYes);
        expect(TokenType::kPrintEnd, "`}}`");
      } else {
        expect(TokenType::kBlockBegin, "a tag");
        if (at_end(ends)) return body;
        body.push_back(statement());
        expect(TokenType::kBlockEnd, "`%}`");
      }
    }
    if (ends.size() > 0)
      fail(fmt::format("the end of the template; `{}` is missing", *ends.begin()));
    return body;
  }

  /// The rest of an opening tag, statements, and the name of the tag that ends them.
  Body block(const Ends& ends) {
    skip_symbol(":");
    expect(TokenType::kBlockEnd, "`%}`");
    return statements(ends);
  }

  StatementPtr statement() {
    const int line = current().line;
    const std::string name = any_name("the name of a tag");
    if (name == "if") return if_block(line);
    if (name == "for") return for_block(line);
    if (name == "set") return set(line);
    if (name == "macro") return macro_block(line);
    if (name == "call") return call_block(line);
    if (name == "filter") return filter_block(line);
    if (name == "with") return with_block(line);
    if (name == "print") return print(line);
    if (name == "break" || name == "continue") {
      if (loops_ == 0) fail(fmt::format("`{}` outside of a loop", name));
      return make(name == "break" ? Kind::kBreak : Kind::kContinue, line);
    }
    if (name == "generation") {
      StatementPtr made = make(Kind::kScope, line);
      made->body = outside_of_loops({"endgeneration"});
      return made;
    }
    const bool known = std::ranges::find(kUnsupported, name) != kUnsupported.end();
    throw TemplateError(known ? fmt::format("the tag {} is not supported", in_quotes(name))
                              : fmt::format("there is no tag {}", in_quotes(name)),
                        line);
  }

  /// The body of what Python runs as a function of its own; ends behind the name of its end.
  Body outside_of_loops(const Ends& ends) {
    const int loops = std::exchange(loops_, 0);
    Body body = block(ends);
    next();
    loops_ = loops;
    return body;
  }

  StatementPtr if_block(int line) {
    StatementPtr made = make(Kind::kIf, line);
    ++conditional_;
    for (;;) {
      Statement::Branch branch;
      branch.test = tuple(Conditional::kNo);
      branch.body = block({"elif", "else", "endif"});
      made->branches.push_back(std::move(branch));
      if (skip_name("elif")) continue;
      if (skip_name("else")) made->other = block({"endif"});
      next();  // endif
      break;
    }
    --conditional_;
    return made;
  }

  StatementPtr for_block(int line) {
    StatementPtr made = make(Kind::kFor, line);
    ++fors_;
    made->target = target(false, "in");
    expect_name("in");
    made->expression = tuple(Conditional::kNo, "recursive");
    if (skip_name("if")) made->test = expression();
    made->recursive = skip_name("recursive");
    ++loops_;
    made->body = block({"endfor", "else"});
    --loops_;
    if (next().text == "else") {
      made->other = block({"endfor"});
      next();
    }
    --fors_;
    return made;
  }

  StatementPtr set(int line) {
    StatementPtr made = make(Kind::kSet, line);
    made->target = target(true);
    if (skip_symbol("=")) {
      made->expression = tuple(Conditional::kYes);
      return made;
    }
    made->kind = Kind::kSetBlock;
    made->filter = filters(nullptr);
    made->body = block({"endset"});
    next();
    return made;
  }

  void signature(MacroDefinition& macro) {
    expect_symbol("(");
    while (!at_symbol(")")) {
      if (!macro.parameters.empty()) expect_symbol(",");
      if (macro.parameters.size() == CallArguments::kMostNamed) {
        fail(fmt::format("a macro with more than {} parameters", CallArguments::kMostNamed));
      }
      std::string name = any_name("the name of a parameter");
      if (std::ranges::find(macro.parameters, name) != macro.parameters.end()) {
        fail(fmt::format("the parameter {} is there twice", in_quotes(name)));
      }
      macro.parameters.push_back(std::move(name));
      if (skip_symbol("=")) {
        macro.defaults.push_back(expression());
      } else if (!macro.defaults.empty()) {
        fail("a parameter without a default follows one that has one");
      }
    }
    expect_symbol(")");
  }

  /// Reads a macro's signature and body, up to the name of its end, and what special names it uses.
  /// A `call` block has its call between the two: `call`.
  void definition(MacroDefinition& macro, std::string_view end, bool has_signature,
                  ExpressionPtr* call = nullptr) {
    const bool values = std::exchange(values_named_, false);
    const bool named = std::exchange(named_named_, false);
    const bool caller = std::exchange(caller_named_, false);
    if (has_signature) signature(macro);
    if (call != nullptr) *call = expression();
    macro.body = outside_of_loops({end});
    macro.uses_values = values_named_;
    macro.uses_named = named_named_;
    macro.uses_caller = caller_named_;
    values_named_ = values_named_ || values;
    named_named_ = named_named_ || named;
    caller_named_ = caller_named_ || caller;
  }

  StatementPtr macro_block(int line) {
    StatementPtr made = make(Kind::kMacro, line);
    made->macro.name = any_name("the name of a macro");
    if (!at_symbol("(")) fail("`(` was expected");
    definition(made->macro, "endmacro", true);
    return made;
  }

  StatementPtr call_block(int line) {
    StatementPtr made = make(Kind::kCall, line);
    made->macro.name = "caller";
    definition(made->macro, "endcall", at_symbol("("), &made->expression);
    if (made->expression->kind != Expression::Kind::kCall) {
      throw TemplateError("`call` needs the call of a macro", line);
    }
    return made;
  }

  StatementPtr filter_block(int line) {
    StatementPtr made = make(Kind::kFilter, line);
    made->filter = filters(nullptr, true);
    made->body = block({"endfilter"});
    next();
    return made;
  }

  StatementPtr with_block(int line) {
    StatementPtr made = make(Kind::kWith, line);
    while (!at(TokenType::kBlockEnd)) {
      if (!made->assignments.empty()) expect_symbol(",");
      ExpressionPtr name = with_target();
      expect_symbol("=");
      made->assignments.emplace_back(std::move(name), expression());
    }
    made->body = block({"endwith"});
    next();
    return made;
  }

  ExpressionPtr with_target() {
    auto made = std::make_unique<Expression>();
    made->kind = Expression::Kind::kName;
    made->line = current().line;
    made->name = any_name("a name");
    return made;
  }

  StatementPtr print(int line) {
    StatementPtr made = make(Kind::kPrint, line);
    made->expression = joined_expressions();
    return made;
  }

  int loops_ = 0;
};

}  // namespace

Body parse_template(std::string_view source) { return Parser(source).run(); }

}  // namespace zi::chat
