#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "chat/values/value.h"

namespace zi::chat {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

/// What stands in the brackets of a call, a filter or a test.
struct CallArguments {
  static constexpr std::size_t kMostNamed = 255;  // also of the parameters of a macro
  std::vector<ExpressionPtr> values;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  ExpressionPtr more_values;  // *list; null where there is none
  ExpressionPtr more_named;   // **dict
};

struct Expression {
  enum class Kind {
    kConstant,     // `constant`
    kName,         // `name`
    kNamespace,    // name.attribute as a target of `set`
    kTuple,        // parts
    kList,         // parts
    kDict,         // parts: key, value, key, value, ..
    kConditional,  // parts: value, test, other (null: undefined)
    kOr,           // parts
    kAnd,          // parts
    kNot,          // parts[0]
    kCompare,      // parts, and `operators` between them
    kBinary,       // `name` is the operator; parts[0], parts[1]
    kUnary,        // `name` is + or -; parts[0]
    kConcat,       // parts
    kAttribute,    // parts[0].attribute
    kItem,         // parts[0][parts[1]]
    kSlice,        // parts: begin, end, step (null where they are missing)
    kCall,         // parts[0](arguments)
    kFilter,       // parts[0] | name(arguments); parts[0] is null for the text of a block
    kTest,         // parts[0] is name(arguments)
  };
  Kind kind = Kind::kConstant;
  int line = 0;
  int depth = 1;  // of the expressions inside it
  std::string name;
  std::string attribute;
  Value constant;
  std::vector<ExpressionPtr> parts;
  std::vector<std::string> operators;
  CallArguments arguments;
};

struct Statement;
using Body = std::vector<std::unique_ptr<Statement>>;

/// The parameters and the body of a macro, or of a block that is given to one.
struct MacroDefinition {
  std::string name;
  std::vector<std::string> parameters;
  std::vector<ExpressionPtr> defaults;  // of the last ones
  Body body;
  bool uses_values = false;  // `varargs`
  bool uses_named = false;   // `kwargs`
  bool uses_caller = false;
};

struct Statement {
  enum class Kind {
    kText,      // `text`
    kPrint,     // expression
    kIf,        // branches; `other`
    kFor,       // target, expression (the items), test, body, other
    kSet,       // target, expression
    kSetBlock,  // target, filter (may be null), body
    kMacro,     // macro
    kCall,      // expression (a call) with `macro` as its caller
    kFilter,    // filter, body
    kWith,      // assignments, body
    kScope,     // body: {% generation %}
    kBreak,
    kContinue,
  };
  struct Branch {
    ExpressionPtr test;
    Body body;
  };
  Kind kind = Kind::kText;
  int line = 0;
  std::string text;
  ExpressionPtr target, expression, test, filter;
  std::vector<Branch> branches;
  std::vector<std::pair<ExpressionPtr, ExpressionPtr>> assignments;
  Body body, other;
  bool recursive = false;
  MacroDefinition macro;
};

}  // namespace zi::chat
