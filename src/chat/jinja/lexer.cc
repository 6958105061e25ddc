#include "chat/jinja/lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "base/printable_text.h"
#include "chat/values/python_text.h"
#include "chat/values/string_literal.h"
#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

using TokenType = Token::Type;

constexpr std::size_t kMostNameBytes = 1000;

constexpr std::array<std::string_view, 28> kOperators = {
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]",
    "(",  ")",  "{",  "}",  ">",  "<",  "=", ".", ":", "|", ",", ";", "!", "&"};

bool begins_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}

/// Each line end as "\n", and without the last one.
std::string with_plain_lines(std::string_view source) {
  std::string out;
  for (std::size_t at = 0; at < source.size(); ++at) {
    if (source[at] != '\r') {
      out += source[at];
    } else {
      out += '\n';
      if (source.substr(at + 1).starts_with('\n')) ++at;
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(with_plain_lines(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) text_and_tag();
    add(TokenType::kEnd, "");
    return std::move(tokens_);
  }

 private:
  std::string_view rest() const { return std::string_view(source_).substr(at_); }

  void add(TokenType type, std::string text) { tokens_.push_back({type, std::move(text), line_}); }

  /// Goes on by `bytes`, and counts lines.
  void pass(std::size_t bytes) {
    const std::string_view passed = rest().substr(0, bytes);
    line_ += static_cast<int>(std::ranges::count(passed, '\n'));
    at_ += passed.size();
  }

  void pass_space() {
    while (at_ < source_.size() && is_space(first_point(rest()))) {
      pass(offset_of_point(rest(), 1));
    }
  }

  [[noreturn]] void fail(const std::string& message) const { throw TemplateError(message, line_); }

  /// Data up to the next tag, without the white space that the tag takes from it, and the tag.
  void text_and_tag() {
    const std::size_t open = next_tag();
    std::string_view data = rest().substr(0, open == std::string::npos ? open : open - at_);
    const bool line_starts = at_ == 0 || source_[at_ - 1] == '\n';
    if (open == std::string::npos) {
      add(TokenType::kData, std::string(data));
      pass(data.size());
      return;
    }
    const char kind = source_[open + 1];
    const char sign = open + 2 < source_.size() ? source_[open + 2] : '\0';
    const std::size_t whole = data.size();
    if (sign == '-') {
      data = strip(data, Side::kRight);
    } else if (sign != '+' && kind != '{') {
      data = without_indent(data, line_starts);
    }
    if (!data.empty()) add(TokenType::kData, std::string(data));
    pass(whole + 2);
    if (sign == '-' || sign == '+') pass(1);
    if (kind == '#') {
      comment();
    } else if (kind == '{') {
      inside(TokenType::kPrintBegin, TokenType::kPrintEnd, "}}");
    } else if (!raw()) {
      inside(TokenType::kBlockBegin, TokenType::kBlockEnd, "%}");
    }
  }

  std::size_t next_tag() const {
    for (std::size_t at = at_; (at = source_.find('{', at)) != std::string::npos; ++at) {
      const char next = at + 1 < source_.size() ? source_[at + 1] : '\0';
      if (next == '{' || next == '%' || next == '#') return at;
    }
    return std::string::npos;
  }

  /// lstrip_blocks: white space between the start of a line and a tag goes.
  static std::string_view without_indent(std::string_view data, bool line_starts) {
    const std::size_t newline = data.rfind('\n');
    if (newline == std::string_view::npos && !line_starts) return data;
    const std::size_t start = newline == std::string_view::npos ? 0 : newline + 1;
    return strip(data.substr(start), Side::kLeft).empty() ? data.substr(0, start) : data;
  }

  /// Behind an end such as `%}`: `-` takes all white space, else a block's end takes a newline.
  void close(std::string_view end, bool trims) {
    const bool minus = rest().starts_with('-');
    const bool plus = rest().starts_with('+');
    pass(end.size() + (minus || plus ? 1 : 0));
    if (minus) {
      pass_space();
    } else if (!plus && trims && rest().starts_with('\n')) {
      pass(1);
    }
  }

  /// Whether an end such as `%}` is here, with its sign.
  bool closes_here(std::string_view end, bool plus_too) const {
    std::string_view text = rest();
    if (text.starts_with('-') || (plus_too && text.starts_with('+'))) text.remove_prefix(1);
    return text.starts_with(end);
  }

  void comment() {
    const std::size_t end = source_.find("#}", at_);
    if (end == std::string::npos) fail("a comment has no end");
    const bool sign = end > at_ && (source_[end - 1] == '-' || source_[end - 1] == '+');
    pass(end - at_ - (sign ? 1 : 0));
    close("#}", true);
  }

  /// `{% raw %}` to `{% endraw %}`, where the former is here, behind its `{%`.
  bool raw() {
    std::string_view text = strip(rest(), Side::kLeft);
    if (!text.starts_with("raw")) return false;
    text = strip(text.substr(3), Side::kLeft);
    const bool minus = text.starts_with("-%}");
    if (!minus && !text.starts_with("%}")) return false;
    pass(rest().size() - text.size() + (minus ? 3 : 2));
    if (minus) pass_space();
    const bool line_starts = source_[at_ - 1] == '\n';
    for (std::size_t open = at_; (open = source_.find("{%", open)) != std::string::npos; ++open) {
      std::string_view tag = std::string_view(source_).substr(open + 2);
      const char sign = tag.empty() ? '\0' : tag.front();
      if (sign == '-' || sign == '+') tag.remove_prefix(1);
      tag = strip(tag, Side::kLeft);
      if (!tag.starts_with("endraw")) continue;
      tag = strip(tag.substr(6), Side::kLeft);
      if (!tag.starts_with("%}") && !tag.starts_with("-%}") && !tag.starts_with("+%}")) continue;
      std::string_view data = rest().substr(0, open - at_);
      if (sign == '-') {
        data = strip(data, Side::kRight);
      } else if (sign != '+') {
        data = without_indent(data, line_starts);
      }
      add(TokenType::kData, std::string(data));
      pass(rest().size() - tag.size());
      close("%}", true);
      return true;
    }
    fail("a raw block has no end");
  }

  /// The tokens of a tag, up to its end.
  void inside(TokenType begin, TokenType end_type, std::string_view end) {
    add(begin, "");
    const bool is_block = end_type == TokenType::kBlockEnd;
    std::string open;  // brackets
    for (;;) {
      if (at_ >= source_.size()) fail(fmt::format("a tag has no `{}`", end));
      if (open.empty() && closes_here(end, is_block)) {
        add(end_type, "");
        close(end, is_block);
        return;
      }
      if (is_space(first_point(rest()))) {
        pass_space();
      } else if (!number() && !name() && !quoted()) {
        symbol(open);
      }
    }
  }

  bool name() {
    if (!begins_name(source_[at_])) return false;
    std::size_t bytes = 0;
    while (bytes < rest().size() && (begins_name(rest()[bytes]) || is_digit_byte(rest()[bytes]))) {
      ++bytes;
    }
    if (bytes > kMostNameBytes) {
      fail(fmt::format("a name of more than {} characters", kMostNameBytes));
    }
    const std::string text(rest().substr(0, bytes));
    const auto beyond = [](char c) { return static_cast<unsigned char>(c) >= 0x80; };
    if (std::ranges::any_of(text, beyond)) {
      fail(fmt::format("{}: names beyond ASCII are not supported", in_quotes(text)));
    }
    add(TokenType::kName, text);
    pass(bytes);
    return true;
  }

  bool quoted() {
    const char quote = source_[at_];
    if (quote != '"' && quote != '\'') return false;
    std::size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) fail("a text has no closing quote");
    add(TokenType::kString, unescaped(rest().substr(1, end - at_ - 1), line_));
    pass(end + 1 - at_);
    return true;
  }

  bool number() {
    if (!is_digit_byte(source_[at_])) return false;
    std::string_view text = rest();
    const auto digits = [&text](std::size_t from) {
      while (from < text.size() && is_digit_byte(text[from])) ++from;
      return from;
    };
    std::size_t end = digits(0);
    const auto digit_at = [&](std::size_t i) { return i < text.size() && is_digit_byte(text[i]); };
    bool real = false;
    // `messages.0.5` is an item of an item.
    const bool after_dot = at_ > 0 && source_[at_ - 1] == '.';
    if (!after_dot && digit_at(end + 1) && text[end] == '.') {
      real = true;
      end = digits(end + 1);
    }
    if (!after_dot && end < text.size() && (text[end] == 'e' || text[end] == 'E')) {
      const bool sign = end + 1 < text.size() && (text[end + 1] == '+' || text[end + 1] == '-');
      if (digit_at(end + (sign ? 2 : 1))) {
        real = true;
        end = digits(end + (sign ? 2 : 1));
      }
    }
    text = text.substr(0, end);
    const bool more = end < rest().size() && begins_name(rest()[end]);
    if (more || (!real && text.size() > 1 && text.front() == '0')) {
      fail(fmt::format("{}: numbers in this form are not supported",
                       in_quotes(rest().substr(0, end + 1))));
    }
    add(real ? TokenType::kFloat : TokenType::kInteger, std::string(text));
    const char* const last = text.data() + text.size();
    const auto error = real ? std::from_chars(text.data(), last, tokens_.back().real).ec
                            : std::from_chars(text.data(), last, tokens_.back().integer).ec;
    if (error != std::errc()) fail(fmt::format("the number {} is too large", in_quotes(text)));
    pass(end);
    return true;
  }

  void symbol(std::string& open) {
    const auto* const found = std::ranges::find_if(
        kOperators, [&](std::string_view symbol) { return rest().starts_with(symbol); });
    if (found == kOperators.end() || *found == "!" || *found == "&") {
      fail(fmt::format("unexpected {}", in_quotes(rest().substr(0, offset_of_point(rest(), 1)))));
    }
    const char c = found->front();
    if (c == '(' || c == '[' || c == '{') {
      open += c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
      if (open.empty() || open.back() != c) fail(fmt::format("unexpected `{}`", c));
      open.pop_back();
    }
    add(TokenType::kOperator, std::string(*found));
    pass(found->size());
  }

  const std::string source_;
  std::size_t at_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace zi::chat
