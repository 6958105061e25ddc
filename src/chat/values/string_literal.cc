#include "chat/values/string_literal.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdint>

#include "base/printable_text.h"
#include "chat/values/python_text.h"
#include "chat/values/template_error.h"

namespace zi::chat {
namespace {

/// The character that the escape of a number means: `digits` of them in `base`.
std::string numbered(std::string_view digits, std::size_t wanted, int base, int line) {
  std::uint32_t number = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), number, base);
  const std::string character = utf8_of(static_cast<char32_t>(number));
  const bool whole = error == std::errc() && end == digits.data() + digits.size();
  if (digits.size() != wanted || !whole || character.empty()) {
    throw TemplateError(
        fmt::format("an escape with the digits {} is no character", in_quotes(digits)), line);
  }
  return character;
}

}  // namespace

std::string unescaped(std::string_view written, int line) {
  std::string out;
  for (std::size_t at = 0; at < written.size(); ++at) {
    if (written[at] != '\\' || at + 1 == written.size()) {
      out += written[at];
      continue;
    }
    const char c = written[++at];
    constexpr std::string_view kLetters = "abfnrtv\\'\"";
    constexpr std::string_view kMeant = "\a\b\f\n\r\t\v\\'\"";
    if (const std::size_t plain = kLetters.find(c); plain != std::string_view::npos) {
      out += kMeant[plain];
    } else if (c == 'x' || c == 'u' || c == 'U') {
      const std::size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
      out += numbered(written.substr(at + 1, digits), digits, 16, line);
      at += digits;
    } else if (c >= '0' && c <= '7') {
      std::size_t digits = 1;
      while (digits < 3 && at + digits < written.size() && written[at + digits] >= '0' &&
             written[at + digits] <= '7') {
        ++digits;
      }
      out += numbered(written.substr(at, digits), digits, 8, line);
      at += digits - 1;
    } else if (c == 'N') {
      throw TemplateError("characters by name (`\\N{..}`) are not supported", line);
    } else if (c != '\n') {  // a backslash in front of anything else stays
      out += '\\';
      out += c;
    }
  }
  return out;
}

}  // namespace zi::chat
