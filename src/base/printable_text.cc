#include "base/printable_text.h"

#include <cstddef>
#include <cstdint>

#include "base/utf8.h"

namespace zi {
namespace {

bool is_control(std::uint32_t code) { return code < 0x20 || (code >= 0x7f && code < 0xa0); }

/// What ends a line or changes the order in which what follows is shown.
bool steers_lines(std::uint32_t code) {
  return code == 0x2028 || code == 0x2029 || code == 0x061c || code == 0x200e || code == 0x200f ||
         (code >= 0x202a && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069);
}

/// `stays` is asked for each whole character.
template <typename Stays>
std::string replaced(std::string_view text, Stays stays) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Utf8Front front = utf8_front(text);
    const std::string_view piece = text.substr(0, front.bytes);
    const bool whole = front.kind == Utf8Front::Kind::kCharacter;
    out += whole && stays(code_point(piece)) ? piece : kReplacementCharacter;
    text.remove_prefix(front.bytes);
  }
  return out;
}

}  // namespace

std::string printable(std::string_view text, std::string_view kept) {
  return replaced(text, [&](std::uint32_t code) {
    const bool asked_for = code < 0x80 && kept.find(static_cast<char>(code)) != kept.npos;
    return asked_for || (!is_control(code) && !steers_lines(code));
  });
}

std::string printable_prose(std::string_view text) {
  return replaced(
      text, [](std::uint32_t code) { return code == '\n' || code == '\t' || !is_control(code); });
}

std::string in_quotes(std::string_view text) {
  constexpr std::size_t kMost = 120;
  std::size_t end = text.size();
  if (end > kMost) {
    // Not in the middle of a character, which has four bytes at most.
    end = kMost;
    while (end > kMost - 3 && (static_cast<unsigned char>(text[end]) & 0xC0u) == 0x80u) --end;
  }
  return "`" + printable(text.substr(0, end)) + (end < text.size() ? "...`" : "`");
}

}  // namespace zi
