#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "serve/http/http_server.h"
#include "tests/http_fixture.h"

namespace zi {
namespace {

using test::echo;
using test::error_code_of;
using test::HttpClient;
using test::on_any_port;
using test::ReceivedResponse;
using test::text_response;
using ::testing::HasSubstr;
using ::testing::Not;

/// What the log says while `run` runs.
std::string log_of(const std::function<void()>& run) {
  ::testing::internal::CaptureStderr();
  run();
  return ::testing::internal::GetCapturedStderr();
}

TEST(HttpHandler, AFailingHandlerBecomesA500AndALineInTheLog) {
  const std::string log = log_of([] {
    HttpServer server(on_any_port(), [](HttpRequest request, std::shared_ptr<HttpReply>) {
      if (request.path == "/int") throw 1;
      throw std::runtime_error("out of paper");
    });
    HttpClient client(server.port());
    client.get("/printer");
    const ReceivedResponse response = client.read_response();
    EXPECT_EQ(response.status, 500);
    EXPECT_EQ(error_code_of(response), "internal_error");
    EXPECT_THAT(response.body, Not(HasSubstr("paper")));  // which is the operator's to know
    client.get("/int");                                   // the connection is fine
    EXPECT_EQ(client.read_response().status, 500);
  });
  EXPECT_THAT(log, HasSubstr("GET /printer of 127.0.0.1:"));
  EXPECT_THAT(log, HasSubstr("out of paper"));
  EXPECT_THAT(log, HasSubstr("GET /int of 127.0.0.1:"));
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 2);
}

TEST(HttpHandler, AHandlerThatFailsBehindItsAnswerDoesNotSpoilIt) {
  const std::string log = log_of([] {
    HttpServer server(on_any_port(), [](HttpRequest request, std::shared_ptr<HttpReply> reply) {
      echo(std::move(request), std::move(reply));
      throw std::runtime_error("too late");
    });
    HttpClient client(server.port());
    client.get("/a");
    EXPECT_EQ(client.read_response().body, "GET /a ");
    client.get("/b");
    EXPECT_EQ(client.read_response().body, "GET /b ");
  });
  EXPECT_THAT(log, HasSubstr("too late"));
}

TEST(HttpHandler, ThoseWhoWorkForAFailedHandlerLearnThatNobodyWaits) {
  std::shared_ptr<HttpReply> handed_on;
  std::atomic<int> calls{0};
  log_of([&] {
    HttpServer server(on_any_port(), [&](HttpRequest, std::shared_ptr<HttpReply> reply) {
      handed_on = reply;
      reply->on_left([&] { ++calls; });
      throw std::runtime_error("no");
    });
    HttpClient client(server.port());
    client.get("/");
    EXPECT_EQ(client.read_response().status, 500);
    EXPECT_TRUE(test::wait_until([&] { return calls == 1; }));
    EXPECT_TRUE(handed_on->left());
    handed_on->send(text_response("too late"));
    client.get("/");
    EXPECT_EQ(client.read_response().status, 500);
  });
}

TEST(HttpHandler, ARequestThatIsDroppedUnansweredBecomesA500) {
  const std::string log = log_of([] {
    HttpServer server(on_any_port(), [](HttpRequest, std::shared_ptr<HttpReply>) {});
    HttpClient client(server.port());
    client.get("/");
    EXPECT_EQ(error_code_of(client.read_response()), "internal_error");
  });
  EXPECT_THAT(log, HasSubstr("dropped without an answer"));
}

TEST(HttpHandler, AnAnswerThatHttpCannotCarryBecomesA500) {
  const std::string log = log_of([] {
    HttpServer server(on_any_port(), [](HttpRequest request, std::shared_ptr<HttpReply> reply) {
      HttpResponse response = text_response("fine");
      if (request.path == "/status") response.status = 99;
      if (request.path == "/line") response.headers.emplace_back("X-A", "b\r\nSet-Cookie: c");
      if (request.path == "/name") response.headers.emplace_back("X A", "b");
      if (request.path == "/own") response.headers.emplace_back("content-length", "3");
      if (request.path == "/type") response.content_type = "text/plain\n";
      if (request.query == "stream") {
        reply->begin_stream(std::move(response));
      } else {
        reply->send(std::move(response));
      }
    });
    HttpClient client(server.port());
    for (const std::string path : {"/status", "/line", "/name", "/own", "/type", "/line?stream"}) {
      client.get(path);
      const ReceivedResponse response = client.read_response();
      EXPECT_EQ(error_code_of(response), "internal_error") << path;
      EXPECT_THAT(response.head, Not(HasSubstr("Cookie"))) << path;
    }
  });
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 6);
}

TEST(HttpHandler, ARequestMayBeAnsweredForItWhileItRuns) {
  HttpOptions options = on_any_port();
  options.threads = 1;
  std::promise<void> end;
  std::atomic<int> calls{0};
  HttpServer server(options, [&, ended = end.get_future().share()](
                                 HttpRequest request, std::shared_ptr<HttpReply> reply) {
    ++calls;
    if (request.path == "/stream") {
      reply->begin_stream(text_response(""));
      reply->write("begun");
    }
    ended.wait();
    reply->write(", and ended");
    reply->end();
    reply->send(text_response("too late"));
  });
  HttpClient streaming(server.port());
  streaming.get("/stream");
  EXPECT_EQ(streaming.read_to("begun").substr(0, 15), "HTTP/1.1 200 OK");
  HttpClient waiting(server.port());
  waiting.get("/");  // for the one thread
  HttpClient sending(server.port());
  sending.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf");
  HttpClient idle(server.port());
  ASSERT_TRUE(test::wait_until([&] { return server.open_requests() == 3; }));
  HttpResponse leaving = text_response("the server is leaving");
  leaving.status = 503;
  server.abandon(leaving);
  for (HttpClient* const client : {&waiting, &sending}) {
    const ReceivedResponse response = client->read_response();
    EXPECT_EQ(response.status, 503);
    EXPECT_EQ(response.body, "the server is leaving");
    EXPECT_EQ(response.header("Connection"), "close");
  }
  EXPECT_TRUE(idle.ended());
  EXPECT_TRUE(test::wait_until([&] { return server.open_requests() == 1; }));
  EXPECT_FALSE(HttpClient(server.port()).connected());
  EXPECT_EQ(calls, 1);
  end.set_value();
  EXPECT_THAT(streaming.read_to_end(), HasSubstr(", and ended"));  // what had begun is not spoiled
}

TEST(HttpHandler, ASecondAnswerChangesNothing) {
  HttpServer server(on_any_port(), [](HttpRequest, std::shared_ptr<HttpReply> reply) {
    reply->send(text_response("first"));
    reply->send(text_response("second"));
    reply->begin_stream(text_response(""));
    reply->write("third");
    reply->end();
  });
  HttpClient client(server.port());
  for (int i = 0; i < 3; ++i) {
    client.get("/");
    EXPECT_EQ(client.read_response().body, "first");
  }
}

}  // namespace
}  // namespace zi
