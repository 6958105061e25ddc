#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "serve/http/http_message.h"

namespace zi {

/// What the request and the server say about the answer.
struct ResponseTerms {
  bool http_1_0 = false;   // the client knows no chunks
  bool head_only = false;  // of a HEAD request
  bool keep_alive = true;
  std::string cors_origin;  // empty: none
};

/// Why HTTP cannot carry that head: its status, or a header that is malformed or the server's own.
/// Empty where it can.
std::string unusable_head(const HttpResponse& response);

/// Whether the status lets an answer have a body: 204 and 304 have none.
bool may_have_body(int status);

/// The lines of the head, with the empty one. `body_bytes`: of a whole answer; none for a stream.
std::string response_head(const HttpResponse& response, const ResponseTerms& terms,
                          std::optional<std::size_t> body_bytes);

/// `bytes` (some) as a chunk of a stream (RFC 9112, 7.1), appended to `out`.
void append_chunk(std::string_view bytes, std::string& out);
inline constexpr std::string_view kLastChunk = "0\r\n\r\n";

}  // namespace zi
