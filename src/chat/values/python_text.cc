#include "chat/values/python_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

namespace zi::chat {
namespace {

std::size_t point_bytes(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xc0u) == 0x80u; }

/// Where the last character of a text begins.
std::size_t last_point(std::string_view text) {
  std::size_t at = text.size() - 1;
  while (at > 0 && is_continuation(text[at])) --at;
  return at;
}

bool is_line_end(char32_t point) {
  return (point >= 0x0a && point <= 0x0d) || (point >= 0x1c && point <= 0x1e) || point == 0x85 ||
         point == 0x2028 || point == 0x2029;
}

std::vector<std::string_view> split_at_space(std::string_view text, std::int64_t most,
                                             bool from_right) {
  std::vector<std::string_view> parts;
  // What is left after the last cut keeps the white space at its other end.
  const Side next = from_right ? Side::kRight : Side::kLeft;
  while (!(text = strip(text, next)).empty()) {
    if (most >= 0 && static_cast<std::int64_t>(parts.size()) == most) {
      parts.push_back(text);
      break;
    }
    std::size_t at = from_right ? text.size() : 0;
    if (from_right) {
      while (at > 0) {
        const std::size_t before = last_point(text.substr(0, at));
        if (is_space(first_point(text.substr(before)))) break;
        at = before;
      }
      parts.push_back(text.substr(at));
      text = text.substr(0, at);
    } else {
      while (at < text.size() && !is_space(first_point(text.substr(at)))) {
        at += point_bytes(text[at]);
      }
      parts.push_back(text.substr(0, at));
      text = text.substr(at);
    }
  }
  if (from_right) std::ranges::reverse(parts);
  return parts;
}

}  // namespace

std::size_t count_points(std::string_view text) {
  return static_cast<std::size_t>(
      std::ranges::count_if(text, [](char c) { return !is_continuation(c); }));
}

std::vector<std::string_view> points(std::string_view text) {
  std::vector<std::string_view> all;
  for (std::size_t at = 0; at < text.size();) {
    all.push_back(text.substr(at, point_bytes(text[at])));
    at += all.back().size();
  }
  return all;
}

std::size_t offset_of_point(std::string_view text, std::size_t index) {
  std::size_t at = 0;
  while (index > 0 && at < text.size()) {
    at += point_bytes(text[at]);
    --index;
  }
  return at;
}

char32_t first_point(std::string_view text) {
  const std::size_t bytes = std::min(point_bytes(text.front()), text.size());
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  if (bytes == 1) return byte(0);
  char32_t point = byte(0) & (0xffu >> (bytes + 1));
  for (std::size_t i = 1; i < bytes; ++i) point = (point << 6) | (byte(i) & 0x3fu);
  return point;
}

std::string utf8_of(char32_t point) {
  std::string out;
  const auto put = [&out](char32_t byte) { out += static_cast<char>(byte); };
  if (point < 0x80) {
    put(point);
  } else if (point < 0x800) {
    put(0xc0 | (point >> 6));
    put(0x80 | (point & 0x3f));
  } else if (point < 0x10000) {
    if (point >= 0xd800 && point < 0xe000) return out;
    put(0xe0 | (point >> 12));
    put(0x80 | ((point >> 6) & 0x3f));
    put(0x80 | (point & 0x3f));
  } else if (point < 0x110000) {
    put(0xf0 | (point >> 18));
    put(0x80 | ((point >> 12) & 0x3f));
    put(0x80 | ((point >> 6) & 0x3f));
    put(0x80 | (point & 0x3f));
  }
  return out;
}

bool is_space(char32_t point) {
  return (point >= 0x09 && point <= 0x0d) || (point >= 0x1c && point <= 0x20) || point == 0x85 ||
         point == 0xa0 || point == 0x1680 || (point >= 0x2000 && point <= 0x200a) ||
         point == 0x2028 || point == 0x2029 || point == 0x202f || point == 0x205f ||
         point == 0x3000;
}

std::string_view strip(std::string_view text, Side side,
                       std::optional<std::string_view> characters) {
  const auto goes = [&](std::string_view character) {
    if (characters) return characters->find(character) != std::string_view::npos;
    return is_space(first_point(character));
  };
  if (side != Side::kRight) {
    while (!text.empty()) {
      const std::size_t bytes = point_bytes(text.front());
      if (!goes(text.substr(0, bytes))) break;
      text.remove_prefix(bytes);
    }
  }
  if (side != Side::kLeft) {
    while (!text.empty()) {
      const std::size_t at = last_point(text);
      if (!goes(text.substr(at))) break;
      text = text.substr(0, at);
    }
  }
  return text;
}

std::vector<std::string_view> split(std::string_view text,
                                    std::optional<std::string_view> separator, std::int64_t most,
                                    bool from_right) {
  if (!separator) return split_at_space(text, most, from_right);
  std::vector<std::string_view> parts;
  while (most < 0 || static_cast<std::int64_t>(parts.size()) < most) {
    const std::size_t at = from_right ? text.rfind(*separator) : text.find(*separator);
    if (at == std::string_view::npos) break;
    if (from_right) {
      parts.push_back(text.substr(at + separator->size()));
      text = text.substr(0, at);
    } else {
      parts.push_back(text.substr(0, at));
      text.remove_prefix(at + separator->size());
    }
  }
  parts.push_back(text);
  if (from_right) std::ranges::reverse(parts);
  return parts;
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  std::size_t start = 0;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t after = at + point_bytes(text[at]);
    if (is_line_end(first_point(text.substr(at)))) {
      if (text.substr(at).starts_with("\r\n")) ++after;
      lines.push_back(text.substr(start, (keep_ends ? after : at) - start));
      start = after;
    }
    at = after;
  }
  if (start < text.size()) lines.push_back(text.substr(start));
  return lines;
}

std::size_t replaced_size(std::string_view text, std::string_view from, std::string_view to,
                          std::int64_t most) {
  std::size_t count = 0;
  if (from.empty()) {
    count = count_points(text) + 1;
  } else {
    for (std::size_t at = 0; (at = text.find(from, at)) != std::string_view::npos;
         at += from.size()) {
      ++count;
    }
  }
  if (most >= 0) count = std::min(count, static_cast<std::size_t>(most));
  return text.size() + count * to.size();  // without what is taken out: an upper bound
}

std::string replace(std::string_view text, std::string_view from, std::string_view to,
                    std::int64_t most) {
  std::string out;
  if (from.empty()) {  // before each character, and at the end
    for (const std::string_view point : points(text)) {
      if (most != 0) out += to;
      if (most > 0) --most;
      out += point;
    }
    if (most != 0) out += to;
    return out;
  }
  while (most != 0) {
    const std::size_t at = text.find(from);
    if (at == std::string_view::npos) break;
    out += text.substr(0, at);
    out += to;
    text.remove_prefix(at + from.size());
    if (most > 0) --most;
  }
  return out += text;
}

std::string repr_of(std::string_view text) {
  const bool single = text.find('\'') == std::string_view::npos;
  const char quote = single || text.find('"') != std::string_view::npos ? '\'' : '"';
  std::string out(1, quote);
  for (const std::string_view character : points(text)) {
    const char32_t point = first_point(character);
    if (point == static_cast<char32_t>(quote) || point == '\\') {
      out += '\\';
      out += character;
    } else if (point == '\n' || point == '\r' || point == '\t') {
      out += point == '\n' ? "\\n" : point == '\r' ? "\\r" : "\\t";
    } else if (is_printable(point)) {
      out += character;
    } else {
      const auto number = static_cast<std::uint32_t>(point);
      out += number < 0x100     ? fmt::format("\\x{:02x}", number)
             : number < 0x10000 ? fmt::format("\\u{:04x}", number)
                                : fmt::format("\\U{:08x}", number);
    }
  }
  return out + quote;
}

std::string repr_of(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific).ptr;
  std::string_view shortest(buffer, static_cast<std::size_t>(end - buffer));
  const std::string sign = shortest.starts_with('-') ? "-" : "";
  shortest.remove_prefix(sign.size());
  const std::size_t e = shortest.find('e');
  std::string digits(1, shortest.front());
  if (e > 2) digits += shortest.substr(2, e - 2);
  int exponent = 0;
  const std::string_view written = shortest.substr(e + (shortest[e + 1] == '+' ? 2 : 1));
  std::from_chars(written.data(), written.data() + written.size(), exponent);
  const int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    const std::string fraction = count > 1 ? "." + digits.substr(1) : "";
    return fmt::format("{}{}{}e{}{:02}", sign, digits[0], fraction, exponent < 0 ? '-' : '+',
                       std::abs(exponent));
  }
  if (exponent < 0) {
    return sign + "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
  }
  if (count <= exponent + 1) {
    return sign + digits + std::string(static_cast<std::size_t>(exponent + 1 - count), '0') + ".0";
  }
  const auto whole = static_cast<std::size_t>(exponent + 1);
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

std::string escape_html(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&#34;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

}  // namespace zi::chat
