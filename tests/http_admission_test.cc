// What is decided by the head of a request, before its body is read.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <memory>
#include <string>
#include <utility>

#include "serve/http/http_server.h"
#include "tests/http_fixture.h"

namespace zi {
namespace {

using test::echo;
using test::HttpClient;
using test::on_any_port;
using test::ReceivedResponse;
using test::serves;
using test::text_response;
using test::wait_until;
using ::testing::HasSubstr;

HttpAdmission only_with_key(const HttpRequest& head) {
  if (head.header("key") == "k") return {};
  HttpResponse refusal = text_response("no key");
  refusal.status = 401;
  return {.refusal = std::move(refusal)};
}

TEST(HttpAdmission, ARefusedRequestIsAnsweredWithoutItsBody) {
  std::atomic<int> calls{0};
  HttpServer server(
      on_any_port(),
      [&](HttpRequest request, std::shared_ptr<HttpReply> reply) {
        ++calls;
        echo(std::move(request), std::move(reply));
      },
      only_with_key);
  for (const std::string framing :
       {"Content-Length: 1000000\r\n\r\n", "Content-Length: 1000000\r\n\r\nbegin",
        "Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n"}) {
    HttpClient client(server.port());
    client.send("POST / HTTP/1.1\r\nHost: x\r\n" + framing);
    const ReceivedResponse response = client.read_response();
    EXPECT_EQ(response.status, 401) << framing;
    EXPECT_EQ(response.body, "no key");
    EXPECT_EQ(response.header("Connection"), "close");
    EXPECT_TRUE(client.ended());
  }
  EXPECT_EQ(calls, 0);
  HttpClient client(server.port());
  client.post("/", "body", "Key: k\r\n");
  EXPECT_EQ(client.read_response().body, "POST / body");
  EXPECT_TRUE(wait_until([&] { return server.open_requests() == 0; }));
}

TEST(HttpAdmission, ARefusedRequestWithoutABodyLeavesItsConnectionOpen) {
  HttpServer server(on_any_port(), echo, only_with_key);
  HttpClient client(server.port());
  client.send("GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\nKey: k\r\n\r\n");
  EXPECT_EQ(client.read_response().status, 401);
  EXPECT_EQ(client.read_response().body, "GET /2 ");
  client.get("/3", "", "HEAD");
  const ReceivedResponse head = client.read_response(true);
  EXPECT_EQ(head.status, 401);
  EXPECT_EQ(head.header("Content-Length"), "6");
  client.get("/4", "Key: k\r\n");
  EXPECT_EQ(client.read_response().body, "GET /4 ");
}

TEST(HttpAdmission, QuickRequestsDoNotWaitForLongOnes) {
  HttpOptions options = on_any_port();
  options.threads = 1;
  std::promise<void> end;
  std::atomic<int> long_ones{0};
  HttpServer server(
      options,
      [&, ended = end.get_future().share()](HttpRequest request, std::shared_ptr<HttpReply> reply) {
        if (request.path == "/long") {
          ++long_ones;
          ended.wait();
        }
        echo(std::move(request), std::move(reply));
      },
      [](const HttpRequest& head) -> HttpAdmission { return {.quick = head.path == "/quick"}; });
  HttpClient first(server.port());
  HttpClient second(server.port());
  first.get("/long");
  ASSERT_TRUE(wait_until([&] { return long_ones == 1; }));
  second.get("/long");
  HttpClient quick(server.port());
  for (int i = 0; i < 3; ++i) {
    quick.get("/quick");
    EXPECT_EQ(quick.read_response().body, "GET /quick ");
  }
  EXPECT_EQ(long_ones, 1);
  end.set_value();
  EXPECT_EQ(first.read_response().body, "GET /long ");
  EXPECT_EQ(second.read_response().body, "GET /long ");
}

TEST(HttpAdmission, BodiesMayHaveLimitsOfTheirOwn) {
  HttpServer server(on_any_port(), echo, [](const HttpRequest& head) -> HttpAdmission {
    return {.max_body = head.path == "/short" ? 10u : 1000u};
  });
  for (const std::string framing :
       {"Content-Length: 11\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n"}) {
    HttpClient client(server.port());
    client.send("POST /short HTTP/1.1\r\nHost: x\r\n" + framing);
    const ReceivedResponse response = client.read_response();
    EXPECT_EQ(response.status, 413) << framing;
    EXPECT_THAT(response.body, HasSubstr("longer than 10 bytes"));
  }
  HttpClient client(server.port());
  client.post("/short", "hello you.");
  EXPECT_EQ(client.read_response().body, "POST /short hello you.");
  client.post("/long", std::string(1000, 'a'));
  EXPECT_EQ(client.read_response().status, 200);
  client.send("OPTIONS / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n");
  EXPECT_EQ(client.read_response().status, 413);  // which nobody would read
  EXPECT_TRUE(serves(server));
}

TEST(HttpAdmission, OptionsAreAnsweredWithoutIt) {
  HttpOptions options = on_any_port();
  options.cors_origin = "*";
  HttpServer server(options, echo, only_with_key);
  HttpClient client(server.port());
  client.get("/", "Access-Control-Request-Method: POST\r\n", "OPTIONS");
  EXPECT_EQ(client.read_response().status, 204);  // a browser sends no key ahead
  client.get("/");
  const ReceivedResponse refused = client.read_response();
  EXPECT_EQ(refused.status, 401);
  EXPECT_EQ(refused.header("Access-Control-Allow-Origin"), "*");  // else a page sees no reason
}

}  // namespace
}  // namespace zi
