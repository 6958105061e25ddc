#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace zi {

/// One request, read whole. Of a HEAD request the server makes a GET whose answer is sent without
/// its body, and it answers OPTIONS itself.
struct HttpRequest {
  std::string method;  // "GET"
  std::string path;    // percent-decoded UTF-8 without control characters, without the query
  std::string query;   // as it came, what is behind `?`
  std::vector<std::pair<std::string, std::string>> headers;  // in their order, names in lower case
  std::string body;
  std::string peer;  // "127.0.0.1:54321", for the log

  /// The first value of that name; empty where there is none.
  std::string_view header(std::string_view lower_case_name) const;
};

/// An answer, or the head of one. The server adds Date, Content-Length, Transfer-Encoding,
/// Connection and what CORS needs; `headers` cannot hold the first four.
struct HttpResponse {
  int status = 200;  // 200 to 599
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
  /// Of a stream: what is written when nothing else was for HttpOptions::filler_interval, so that
  /// proxies and clients do not take it for dead. Comes between two `write`s. Empty: nothing.
  std::string filler{};
};

}  // namespace zi
