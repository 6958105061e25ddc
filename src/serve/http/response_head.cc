#include "serve/http/response_head.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <boost/beast/http/status.hpp>
#include <cctype>
#include <chrono>
#include <iterator>

#include "base/printable_text.h"

namespace zi {
namespace {

namespace http = boost::beast::http;

bool is_token(std::string_view text) {
  return !text.empty() && std::ranges::all_of(text, [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 ||
           std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
  });
}

/// Nothing that ends a line: a value from a client must not become a header of its own.
bool is_field_value(std::string_view text) {
  return std::ranges::none_of(text, [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return (byte < 0x20 && c != '\t') || byte == 0x7f;
  });
}

bool is_servers_own(std::string name) {
  std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::tolower(c); });
  return name == "connection" || name == "content-length" || name == "transfer-encoding" ||
         name == "date";
}

}  // namespace

std::string unusable_head(const HttpResponse& response) {
  if (response.status < 200 || response.status > 599) {
    return fmt::format("status {}", response.status);
  }
  if (!is_field_value(response.content_type)) {
    return "content type " + in_quotes(response.content_type);
  }
  for (const auto& [name, value] : response.headers) {
    if (!is_token(name) || !is_field_value(value) || is_servers_own(name)) {
      return fmt::format("header {}: {}", in_quotes(name), in_quotes(value));
    }
  }
  return "";
}

bool may_have_body(int status) { return status != 204 && status != 304; }

std::string response_head(const HttpResponse& response, const ResponseTerms& terms,
                          std::optional<std::size_t> body_bytes) {
  std::string head;
  const auto out = std::back_inserter(head);
  const auto reason =
      http::obsolete_reason(http::int_to_status(static_cast<unsigned>(response.status)));
  fmt::format_to(out, "HTTP/1.1 {} {}\r\n", response.status,
                 std::string_view(reason.data(), reason.size()));
  fmt::format_to(
      out, "Date: {:%a, %d %b %Y %H:%M:%S} GMT\r\n",
      fmt::gmtime(std::chrono::system_clock::to_time_t(std::chrono::system_clock::now())));
  if (may_have_body(response.status)) {
    if (!response.content_type.empty()) {
      fmt::format_to(out, "Content-Type: {}\r\n", response.content_type);
    }
    if (body_bytes) {
      fmt::format_to(out, "Content-Length: {}\r\n", *body_bytes);
    } else if (!terms.http_1_0) {
      head += "Transfer-Encoding: chunked\r\n";
    }
  }
  for (const auto& [name, value] : response.headers) {
    fmt::format_to(out, "{}: {}\r\n", name, value);
  }
  if (!terms.cors_origin.empty()) {
    fmt::format_to(out, "Access-Control-Allow-Origin: {}\r\n", terms.cors_origin);
    if (terms.cors_origin != "*") head += "Vary: Origin\r\n";
  }
  if (!terms.keep_alive) {
    head += "Connection: close\r\n";
  } else if (terms.http_1_0) {
    head += "Connection: keep-alive\r\n";
  }
  head += "\r\n";
  return head;
}

void append_chunk(std::string_view bytes, std::string& out) {
  fmt::format_to(std::back_inserter(out), "{:x}\r\n", bytes.size());
  out += bytes;
  out += "\r\n";
}

}  // namespace zi
