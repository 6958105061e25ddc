#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace zi::chat {

struct Token {
  enum class Type {
    kData,        // text between tags
    kPrintBegin,  // {{
    kPrintEnd,    // }}
    kBlockBegin,  // {%
    kBlockEnd,    // %}
    kName,
    kString,  // `text` without quotes and escapes
    kInteger,
    kFloat,
    kOperator,  // `text` is the operator
    kEnd,
  };
  Type type = Type::kEnd;
  std::string text;
  int line = 0;
  std::int64_t integer = 0;
  double real = 0;

  bool is(Type wanted, std::string_view wanted_text) const {
    return type == wanted && text == wanted_text;
  }
};

/// Cuts a template into tokens, as Jinja2 does with trim_blocks and lstrip_blocks and without
/// keep_trailing_newline. Comments are gone, raw blocks are data. The last token is kEnd. Throws
/// TemplateError.
std::vector<Token> tokenize(std::string_view source);

}  // namespace zi::chat
