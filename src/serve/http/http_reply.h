#pragma once

#include <cstddef>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string_view>

#include "serve/http/http_message.h"

namespace zi {

/// The answer to one request: `send`, or `begin_stream`, any number of `write`, and `end`. Every
/// thread may use it, at any time: no function waits for the client, and all of them do nothing
/// once the answer has ended, the client has left or the server is gone. Destroyed unanswered it
/// becomes a 500; destroyed in the middle of a stream, the connection is cut off, so that the
/// client sees that the answer is not whole. Of a client that has left it may be destroyed.
class HttpReply {
 public:
  virtual ~HttpReply() = default;
  /// A whole answer. One that HTTP cannot carry (a status or a header that is none) becomes a 500
  /// and a line in the log.
  virtual void send(HttpResponse response) = 0;
  /// The head of a stream, in chunks (until the connection closes, for HTTP/1.0); `head.body` is
  /// ignored. Goes out at once. Refuses as `send`.
  virtual void begin_stream(HttpResponse head) = 0;
  /// Bytes of a stream, queued. A client that leaves more than HttpOptions::max_unsent of them
  /// unread has left.
  virtual void write(std::string_view bytes) = 0;
  /// Of a stream.
  virtual void end() = 0;
  /// Calls `left` once, on a thread of the server, when the client leaves before the answer has
  /// ended, or has left already: its connection is closed, is cut off, took nothing for
  /// HttpOptions::send_timeout, or the server is being destroyed. A client that closes only its
  /// direction has left as well: that looks the same until something is sent, and what is sent
  /// still reaches it. `left` must be short, as connections wait for it, and must not own this
  /// reply. Replaces an earlier `left` that was not called.
  virtual void on_left(std::function<void()> left) = 0;
  virtual bool left() const = 0;
};

/// Called on a worker thread of the server for each request; may take long, and may hand the reply
/// on to another thread. What it throws becomes a 500 and a line in the log.
using HttpHandler = std::function<void(HttpRequest, std::shared_ptr<HttpReply>)>;

/// What the head of a request decides.
struct HttpAdmission {
  /// The answer without the handler's. Where a body is announced, it is not read, and the
  /// connection closes.
  std::optional<HttpResponse> refusal{};
  /// Its handler takes next to no time: it does not wait for those that may take long.
  bool quick = false;
  /// Of its body, beside HttpOptions::max_body; longer ones get a 413.
  std::size_t max_body = std::numeric_limits<std::size_t>::max();
};
/// Called with the head of each request but OPTIONS, before its body is read, on a thread that all
/// connections wait for: must wait for nothing.
using HttpAdmit = std::function<HttpAdmission(const HttpRequest& head)>;

}  // namespace zi
