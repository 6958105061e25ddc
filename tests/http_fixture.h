#pragma once

#include <memory>
#include <string>
#include <utility>

#include "serve/http/http_server.h"
#include "tests/http_client.h"
#include "tests/open_files.h"  // wait_until

namespace zi::test {

/// Options of a server for tests: on a free port.
inline HttpOptions on_any_port() {
  HttpOptions options;
  options.port = 0;
  return options;
}

inline HttpResponse text_response(std::string text) {
  HttpResponse response;
  response.content_type = "text/plain";
  response.body = std::move(text);
  return response;
}

/// Answers with the method, the path and the body.
inline void echo(HttpRequest request, std::shared_ptr<HttpReply> reply) {
  reply->send(text_response(request.method + " " + request.path + " " + request.body));
}

/// Whether the server answers a new connection.
inline bool serves(const HttpServer& server) {
  HttpClient client(server.port());
  client.get("/");
  return client.read_response().status == 200;
}

}  // namespace zi::test
