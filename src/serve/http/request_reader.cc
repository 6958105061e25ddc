#include "serve/http/request_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/beast/core/string.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <cctype>
#include <utility>

#include "base/printable_text.h"
#include "serve/http/request_error.h"
#include "serve/http/request_target.h"
#include "serve/http/response_head.h"

namespace zi {
namespace {

namespace beast = boost::beast;
namespace http = beast::http;

constexpr std::uint32_t kMostHeadBytes = 32 << 10;

std::string_view view(beast::string_view text) { return {text.data(), text.size()}; }

bool equal_ignoring_case(std::string_view a, std::string_view b) {
  return beast::iequals(beast::string_view(a.data(), a.size()),
                        beast::string_view(b.data(), b.size()));
}

std::string lower_case(std::string_view text) {
  std::string lower(text);
  std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return std::tolower(c); });
  return lower;
}

[[noreturn]] void throw_request_error(const boost::system::error_code& error,
                                      std::size_t max_body) {
  if (error == http::error::body_limit) {
    throw RequestError(413, fmt::format("the body is longer than {} bytes", max_body));
  }
  if (error == http::error::header_limit) {
    throw RequestError(431, fmt::format("the head is longer than {} bytes", kMostHeadBytes));
  }
  if (error == http::error::bad_version) {
    throw RequestError(505, "the first line does not end with HTTP/1.0 or HTTP/1.1");
  }
  throw RequestError(400, "malformed request: " + error.message());
}

}  // namespace

struct RequestReader::Parser {
  explicit Parser(std::size_t max) : max_body(max) {
    message.header_limit(kMostHeadBytes);
    message.body_limit(max);
  }

  /// The only value of a header that may come once; empty where it does not come.
  std::string_view only(http::field name) const {
    const auto [first, last] = message.get().equal_range(name);
    if (first == last) return {};
    if (std::next(first) != last) {
      throw RequestError(400, "more than one header " + in_quotes(view(first->name_string())));
    }
    return view(first->value());
  }

  const std::size_t max_body;
  http::request_parser<http::string_body> message;
};

RequestReader::RequestReader(std::size_t max_body) : parser_(std::make_unique<Parser>(max_body)) {}

RequestReader::~RequestReader() = default;

std::size_t RequestReader::take(std::string_view bytes) {
  auto& message = parser_->message;
  std::size_t used = 0;
  if (stage_ == Stage::kNothing) {  // old clients send an empty line behind a body (RFC 9112, 2.2)
    while (bytes.substr(used).starts_with("\r\n")) used += 2;
    if (bytes.substr(used).empty() || bytes.substr(used) == "\r") return used;
    stage_ = Stage::kHead;
  }
  // Beast asserts that it is not given less of a body in chunks than the shortest one.
  const bool before_chunks = stage_ == Stage::kBody && !head_.content_length && !body_begun_;
  if (before_chunks && bytes.size() < kLastChunk.size()) return used;
  body_begun_ = stage_ == Stage::kBody;
  while (used < bytes.size() && stage_ != Stage::kWhole) {
    // Until the head is whole, only that is parsed: it decides whether the body is wanted.
    message.eager(stage_ == Stage::kBody);
    boost::system::error_code error;
    const std::size_t count =
        message.put(boost::asio::buffer(bytes.data() + used, bytes.size() - used), error);
    used += count;
    body_bytes_ = message.get().body().size();
    if (error && error != http::error::need_more) throw_request_error(error, parser_->max_body);
    if (stage_ == Stage::kHead && message.is_header_done()) {
      stage_ = message.is_done() ? Stage::kWhole : Stage::kBody;
      on_head();
      break;
    }
    if (message.is_done()) stage_ = Stage::kWhole;
    if (error || count == 0) break;
  }
  return used;
}

void RequestReader::on_head() {
  const auto& message = parser_->message.get();
  head_.http_1_0 = message.version() == 10;
  head_.keep_alive = parser_->message.keep_alive();
  if (const auto length = parser_->message.content_length()) head_.content_length = *length;
  request_.method = view(message.method_string());
  head_.head_only = request_.method == "HEAD";
  if (head_.head_only) request_.method = "GET";
  for (const auto& field : message) {
    request_.headers.emplace_back(lower_case(view(field.name_string())), view(field.value()));
  }
  // The framing of a body must be beyond doubt (RFC 9112, 6.1 and 6.3). Content-Length beside
  // chunks, and several lengths that differ, are refused by the parser.
  if (message.count(http::field::transfer_encoding) > 0) {
    if (head_.http_1_0) throw RequestError(400, "Transfer-Encoding in an HTTP/1.0 request");
    if (!equal_ignoring_case(parser_->only(http::field::transfer_encoding), "chunked")) {
      throw RequestError(501, "the only Transfer-Encoding that is known is `chunked`");
    }
  }
  parser_->only(http::field::host);
  if (!head_.http_1_0 && message.count(http::field::host) == 0) {
    throw RequestError(400, "there is no header `Host`");
  }
  const std::string_view coding = parser_->only(http::field::content_encoding);
  if (!coding.empty() && !equal_ignoring_case(coding, "identity")) {
    throw RequestError(415, "the body must come without Content-Encoding");
  }
  if (const auto expected = request_.header("expect"); !expected.empty() && !head_.http_1_0) {
    if (!equal_ignoring_case(expected, "100-continue")) {
      throw RequestError(417, "the only expectation that can be met is `100-continue`");
    }
    head_.expects_continue = stage_ == Stage::kBody;
  }
  RequestTarget target = parse_request_target(view(message.target()));
  request_.path = std::move(target.path);
  request_.query = std::move(target.query);
}

HttpRequest RequestReader::finish() {
  request_.body = std::move(parser_->message.get().body());
  return std::move(request_);
}

}  // namespace zi
