#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
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

/// The code of an error body, whose form is checked.
inline std::string error_code_of(const ReceivedResponse& response) {
  EXPECT_EQ(response.header("Content-Type"), "application/json");
  const auto parsed = nlohmann::json::parse(response.body, nullptr, false);
  if (!parsed.contains("error")) return "no error: " + response.body;
  const auto& error = parsed["error"];
  EXPECT_EQ(error.size(), 4u);
  EXPECT_FALSE(error.at("message").get<std::string>().empty());
  EXPECT_EQ(error.at("type"), response.status < 500 ? "invalid_request_error" : "server_error");
  EXPECT_TRUE(error.at("param").is_null());
  return error.at("code");
}

/// Whether the server answers a new connection.
inline bool serves(const HttpServer& server) {
  HttpClient client(server.port());
  client.get("/");
  return client.read_response().status == 200;
}

/// A server whose requests wait here for their answers.
class HeldReplies {
 public:
  explicit HeldReplies(HttpOptions options = on_any_port())
      : server_(std::make_unique<HttpServer>(
            std::move(options), [this](HttpRequest request, std::shared_ptr<HttpReply> reply) {
              if (request.path == "/echo") return echo(std::move(request), std::move(reply));
              const std::lock_guard lock(mutex_);
              replies_.push_back(std::move(reply));
            })) {}

  HttpServer& server() { return *server_; }
  std::uint16_t port() const { return port_; }
  void destroy_server() { server_.reset(); }
  /// Waits for the next one.
  std::shared_ptr<HttpReply> next() {
    std::shared_ptr<HttpReply> reply;
    wait_until([&] {
      const std::lock_guard lock(mutex_);
      if (replies_.empty()) return false;
      reply = std::move(replies_.front());
      replies_.pop_front();
      return true;
    });
    return reply;
  }

 private:
  std::mutex mutex_;
  std::deque<std::shared_ptr<HttpReply>> replies_;
  std::unique_ptr<HttpServer> server_;
  const std::uint16_t port_ = server_->port();
};

/// Whether other requests are answered meanwhile.
inline bool serves_beside(const HeldReplies& held) {
  HttpClient client(held.port());
  client.get("/echo");
  return client.read_response().status == 200;
}

inline HttpResponse event_stream() {
  HttpResponse head;
  head.content_type = "text/event-stream";
  return head;
}

}  // namespace zi::test
