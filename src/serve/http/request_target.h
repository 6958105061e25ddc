#pragma once

#include <string>
#include <string_view>

namespace zi {

/// What a request asks for (RFC 9112, 3.2).
struct RequestTarget {
  std::string path;   // percent-decoded; `*` for the server as a whole
  std::string query;  // as it came
};

/// Takes `/path?query`, `http://host/path?query` and `*`. Throws RequestError (400) for other
/// forms, for escapes that are none, and where the path or the query is not UTF-8 or holds control
/// characters.
RequestTarget parse_request_target(std::string_view target);

}  // namespace zi
