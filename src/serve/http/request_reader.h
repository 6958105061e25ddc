#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "serve/http/http_message.h"

namespace zi {

/// Makes one request of bytes that come in any pieces (HTTP/1.0 and 1.1, RFC 9112). Strict where
/// two programs could read the same bytes as different requests.
class RequestReader {
 public:
  enum class Stage { kNothing, kHead, kBody, kWhole };
  /// What the head says about the rest.
  struct Head {
    bool http_1_0 = false;
    bool keep_alive = false;
    bool expects_continue = false;  // the client waits for 100 before it sends the body
    bool head_only = false;         // HEAD: the request below is a GET
    std::optional<std::uint64_t> content_length;  // none: in chunks, or no body
  };

  explicit RequestReader(std::size_t max_body);
  ~RequestReader();
  RequestReader(const RequestReader&) = delete;
  RequestReader& operator=(const RequestReader&) = delete;

  /// Uses up bytes from the front of `bytes` and returns how many; the rest must come again, with
  /// more behind it. Stops behind the head and behind the request. Throws RequestError; then this
  /// reader and the bytes are of no more use.
  std::size_t take(std::string_view bytes);
  Stage stage() const { return stage_; }

  /// From kBody on; until then, what an error is answered with.
  const Head& head() const { return head_; }
  /// From kBody on, without the body.
  const HttpRequest& request() const { return request_; }
  /// Of the body, so far.
  std::size_t body_bytes() const { return body_bytes_; }
  /// At kWhole, once.
  HttpRequest finish();

 private:
  struct Parser;

  void on_head();

  std::unique_ptr<Parser> parser_;
  Stage stage_ = Stage::kNothing;
  Head head_;
  HttpRequest request_;
  std::size_t body_bytes_ = 0;
  bool body_begun_ = false;
};

}  // namespace zi
