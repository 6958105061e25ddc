#include "serve/http/request_target.h"

#include <algorithm>
#include <cctype>

#include "base/utf8.h"
#include "serve/http/request_error.h"

namespace zi {
namespace {

bool starts_with_ignoring_case(std::string_view text, std::string_view lower_case_front) {
  return text.size() >= lower_case_front.size() &&
         std::equal(lower_case_front.begin(), lower_case_front.end(), text.begin(),
                    [](char front, char c) {
                      return front == std::tolower(static_cast<unsigned char>(c));
                    });
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string percent_decoded(std::string_view text) {
  std::string decoded;
  decoded.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      decoded += text[i];
      continue;
    }
    const int high = i + 2 < text.size() ? hex_digit(text[i + 1]) : -1;
    const int low = i + 2 < text.size() ? hex_digit(text[i + 2]) : -1;
    if (high < 0 || low < 0) {
      throw RequestError(400, "the path has a `%` without two hexadecimal digits");
    }
    decoded += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return decoded;
}

/// What goes into logs and into JSON must be text.
void check_text(std::string_view text, const std::string& what) {
  if (first_invalid_utf8(text)) throw RequestError(400, what + " is not valid UTF-8");
  const bool control = std::ranges::any_of(text, [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte < 0x20 || byte == 0x7f;
  });
  if (control) throw RequestError(400, what + " holds a control character");
}

}  // namespace

RequestTarget parse_request_target(std::string_view target) {
  if (target == "*") return {"*", ""};
  if (!target.starts_with('/')) {
    const std::string_view scheme = starts_with_ignoring_case(target, "http://")    ? "http://"
                                    : starts_with_ignoring_case(target, "https://") ? "https://"
                                                                                    : "";
    if (scheme.empty()) throw RequestError(400, "the request's target is neither a path nor a URL");
    target.remove_prefix(scheme.size());
    target.remove_prefix(std::min(target.find_first_of("/?"), target.size()));
  }
  const std::size_t mark = std::min(target.find('?'), target.size());
  RequestTarget parsed;
  parsed.path = percent_decoded(target.substr(0, mark));
  if (parsed.path.empty()) parsed.path = "/";
  parsed.query = target.substr(std::min(mark + 1, target.size()));
  check_text(parsed.path, "the path");
  check_text(parsed.query, "the query");
  return parsed;
}

}  // namespace zi
