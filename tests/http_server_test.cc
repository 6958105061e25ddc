#include "serve/http/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "tests/http_fixture.h"

namespace zi {
namespace {

using test::echo;
using test::error_code_of;
using test::HttpClient;
using test::on_any_port;
using test::ReceivedResponse;
using test::serves;
using test::text_response;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

TEST(HttpServer, GivesTheHandlerTheRequestAndTheClientTheAnswer) {
  HttpRequest got;
  HttpServer server(on_any_port(), [&](HttpRequest request, std::shared_ptr<HttpReply> reply) {
    got = std::move(request);
    HttpResponse response = text_response("fine");
    response.status = 404;
    response.headers.emplace_back("X-Own", "1");
    reply->send(std::move(response));
  });
  HttpClient client(server.port());
  const std::string body("he\0\xff\n", 5);
  client.send(
      "PATCH /v1/%C3%A9t%c3%a9%2Fa%20b+?x=%41&y HTTP/1.1\r\nHost: x\r\ncontent-LENGTH: 5\r\n"
      "X-Many: 1\r\nx-many: 2\r\nAuthorization:   Bearer a b \r\n\r\n" +
      body);
  const ReceivedResponse response = client.read_response();
  EXPECT_THAT(response.head, StartsWith("HTTP/1.1 404 Not Found\r\nDate: "));
  EXPECT_THAT(*response.header("Date"), EndsWith(" GMT"));
  EXPECT_EQ(response.header("Content-Type"), "text/plain");
  EXPECT_EQ(response.header("Content-Length"), "4");
  EXPECT_EQ(response.header("X-Own"), "1");
  EXPECT_EQ(response.header("Connection"), std::nullopt);
  EXPECT_EQ(response.body, "fine");
  EXPECT_EQ(got.method, "PATCH");
  EXPECT_EQ(got.path, "/v1/\xC3\xA9t\xC3\xA9/a b+");
  EXPECT_EQ(got.query, "x=%41&y");
  EXPECT_EQ(got.body, body);
  EXPECT_THAT(got.peer, StartsWith("127.0.0.1:"));
  EXPECT_EQ(got.header("authorization"), "Bearer a b");
  EXPECT_EQ(got.header("x-many"), "1");
  EXPECT_EQ(got.header("x-none"), "");
  EXPECT_EQ(std::count(got.headers.begin(), got.headers.end(),
                       std::pair<std::string, std::string>("x-many", "2")),
            1);
}

TEST(HttpServer, TakesUrlsAndEmptyLinesBeforeARequest) {
  HttpServer server(on_any_port(), echo);
  HttpClient client(server.port());
  client.send("\r\n\r\nGET HTTP://host:80/a?b HTTP/1.1\r\nHost: host\r\n\r\n");
  EXPECT_EQ(client.read_response().body, "GET /a ");
  client.send("\r\nGET http://host HTTP/1.1\r\nHost: host\r\n\r\n");
  EXPECT_EQ(client.read_response().body, "GET / ");
}

TEST(HttpServer, KeepsAConnectionForFurtherRequestsUntilOneSaysClose) {
  HttpServer server(on_any_port(), echo);
  HttpClient client(server.port());
  for (int i = 0; i < 50; ++i) {
    client.post("/" + std::to_string(i), std::string(1000, 'b'));
    EXPECT_EQ(client.read_response().body,
              "POST /" + std::to_string(i) + " " + std::string(1000, 'b'));
  }
  client.get("/", "Connection: close\r\n");
  EXPECT_EQ(client.read_response().header("Connection"), "close");
  EXPECT_TRUE(client.ended());
}

TEST(HttpServer, ClosesConnectionsOfHttp10UnlessTheyAreToBeKept) {
  HttpServer server(on_any_port(), echo);
  HttpClient client(server.port());
  client.send("GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  const ReceivedResponse response = client.read_response();
  EXPECT_EQ(response.body, "GET /a ");
  EXPECT_EQ(response.header("Connection"), "keep-alive");
  client.send("GET /b HTTP/1.0\r\n\r\n");
  EXPECT_EQ(client.read_response().body, "GET /b ");
  EXPECT_TRUE(client.ended());
}

TEST(HttpServer, AnswersPipelinedRequestsOneByOneInTheirOrder) {
  std::atomic<int> running{0};
  std::atomic<bool> overlap{false};
  HttpServer server(on_any_port(), [&](HttpRequest request, std::shared_ptr<HttpReply> reply) {
    overlap = overlap || ++running > 1;
    if (request.path == "/0") std::this_thread::sleep_for(std::chrono::milliseconds(50));
    --running;
    echo(std::move(request), std::move(reply));
  });
  HttpClient client(server.port());
  std::string all;
  for (int i = 0; i < 1000; ++i) {  // more than is read ahead
    const std::string body = "body" + std::to_string(i) + std::string(100, '.');
    all += "POST /" + std::to_string(i) +
           " HTTP/1.1\r\nHost: x\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" +
           body;
  }
  std::thread sender([&] { client.send(all); });
  for (int i = 0; i < 1000; ++i) {
    const std::string number = std::to_string(i);
    EXPECT_EQ(client.read_response().body,
              "POST /" + number + " body" + number + std::string(100, '.'));
  }
  sender.join();
  EXPECT_FALSE(overlap);
}

TEST(HttpServer, AnswersHeadAsGetWithoutTheBody) {
  HttpServer server(on_any_port(), [](HttpRequest request, std::shared_ptr<HttpReply> reply) {
    if (request.path == "/stream") {
      reply->begin_stream(text_response(""));
      reply->write("never");
      reply->end();
    } else {
      echo(std::move(request), std::move(reply));
    }
  });
  HttpClient client(server.port());
  client.get("/a", "", "HEAD");
  const ReceivedResponse response = client.read_response(true);
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.header("Content-Length"), "7");  // of `GET /a `
  client.get("/stream", "", "HEAD");
  EXPECT_EQ(client.read_response(true).header("Transfer-Encoding"), "chunked");
  client.get("/b");
  EXPECT_EQ(client.read_response().body, "GET /b ");
}

TEST(HttpServer, ANoContentAnswerHasNoBodyAndNoLength) {
  HttpServer server(on_any_port(), [](HttpRequest, std::shared_ptr<HttpReply> reply) {
    HttpResponse response = text_response("not to be sent");
    response.status = 204;
    reply->send(std::move(response));
  });
  HttpClient client(server.port());
  for (int i = 0; i < 2; ++i) {
    client.get("/");
    const ReceivedResponse response = client.read_response();
    EXPECT_EQ(response.status, 204);
    EXPECT_EQ(response.header("Content-Length"), std::nullopt);
  }
}

TEST(HttpServer, AnswersOptionsItself) {
  HttpServer server(on_any_port(), echo);
  HttpClient client(server.port());
  client.get("*", "Origin: https://page\r\nAccess-Control-Request-Method: POST\r\n", "OPTIONS");
  const ReceivedResponse response = client.read_response();
  EXPECT_EQ(response.status, 204);
  EXPECT_THAT(*response.header("Allow"), HasSubstr("POST"));
  EXPECT_THAT(response.head, Not(HasSubstr("Access-Control")));
}

TEST(HttpServer, LetsPagesOfTheCorsOriginSendWhatTheyWant) {
  HttpOptions options = on_any_port();
  options.cors_origin = "https://page";
  HttpServer server(options, echo);
  HttpClient client(server.port());
  client.get("/v1/completions",
             "Origin: https://page\r\nAccess-Control-Request-Method: POST\r\n"
             "Access-Control-Request-Headers: authorization, x-stainless-os\r\n",
             "OPTIONS");
  const ReceivedResponse preflight = client.read_response();
  EXPECT_EQ(preflight.header("Access-Control-Allow-Origin"), "https://page");
  EXPECT_EQ(preflight.header("Access-Control-Allow-Headers"), "authorization, x-stainless-os");
  EXPECT_THAT(*preflight.header("Access-Control-Allow-Methods"), HasSubstr("POST"));
  EXPECT_EQ(preflight.header("Vary"), "Origin");
  client.get("/");
  EXPECT_EQ(client.read_response().header("Access-Control-Allow-Origin"), "https://page");
  client.get("/%");
  EXPECT_EQ(client.read_response().header("Access-Control-Allow-Origin"), "https://page");
}

TEST(HttpServer, AsksForABodyThatWaitsForIt) {
  HttpOptions options = on_any_port();
  options.max_body = 10;
  HttpServer server(options, echo);
  HttpClient client(server.port());
  const std::string head = "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nContent-Length: ";
  client.send(head + "4\r\n\r\n");
  EXPECT_EQ(client.read_to("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.send("body");
  EXPECT_EQ(client.read_response().body, "POST / body");
  client.send(head + "4\r\n\r\nbody");  // did not wait: needs no 100
  EXPECT_EQ(client.read_response().body, "POST / body");
  client.send(head + "11\r\n\r\n");
  EXPECT_EQ(client.read_response().status, 413);
  EXPECT_TRUE(client.ended());
}

TEST(HttpServer, TakesBodiesInChunksThatComeInAnyPieces) {
  HttpServer server(on_any_port(), echo);
  const std::string request =
      "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n"
      "4;name=\"value\"\r\nWiki\r\n006\r\npedia \r\nE\r\nin \r\n\r\nchunks.\r\n0\r\n"
      "X-Trailer: 1\r\n\r\n";
  for (std::size_t piece = 1; piece < request.size(); piece = piece * 3 / 2 + 1) {
    HttpClient client(server.port());
    for (std::size_t at = 0; at < request.size(); at += piece) {
      client.send(std::string_view(request).substr(at, piece));
    }
    EXPECT_EQ(client.read_response().body, "POST / Wikipedia in \r\n\r\nchunks.");
  }
}

TEST(HttpServer, RefusesMalformedRequestsByNameAndServesOn) {
  HttpOptions options = on_any_port();
  options.max_body = 1000;
  HttpServer server(options, echo);
  const std::string post = "POST / HTTP/1.1\r\nHost: x\r\n";
  struct Case {
    std::string bytes;
    int status;
    std::string code;
  };
  const std::vector<Case> cases = {
      {"\x16\x03\x01\x02\x01\x01\xfc", 400, "bad_request"},  // TLS
      {std::string("\0\0\0\0", 4), 400, "bad_request"},
      {"GET\r\n\r\n", 400, "bad_request"},
      {"GET / HTTP/1.1\nHost: x\n\n", 505, "http_version_not_supported"},
      {"G@T / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_request"},
      {"GET path HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_request"},
      {"CONNECT host:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_request"},
      {"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505, "http_version_not_supported"},
      {"GET / HTTP/1.1\r\n\r\n", 400, "bad_request"},
      {"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, "bad_request"},
      {"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400, "bad_request"},
      {"GET / HTTP/1.1\r\nHost: x\r\nA: \x01\r\n\r\n", 400, "bad_request"},
      {"GET /%4 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_request"},
      {"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_request"},
      {"GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_request"},
      {"GET /%0d%0aA:%20b HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_request"},
      {"GET /%ff HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_request"},
      {"GET /?\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_request"},
      {"GET /" + std::string(40'000, 'a') + " HTTP/1.1\r\nHost: x\r\n\r\n", 431, "head_too_large"},
      {"GET / HTTP/1.1\r\nHost: x\r\nA: " + std::string(40'000, 'a'), 431, "head_too_large"},
      {post + "Content-Length: -1\r\n\r\n", 400, "bad_request"},
      {post + "Content-Length: 1x\r\n\r\n", 400, "bad_request"},
      {post + "Content-Length: 99999999999999999999\r\n\r\n", 400, "bad_request"},
      {post + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400, "bad_request"},
      {post + "Content-Length: 1001\r\n\r\n", 413, "body_too_large"},
      {post + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400,
       "bad_request"},
      {post + "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n", 400,
       "bad_request"},
      {post + "Transfer-Encoding: gzip\r\n\r\n", 501, "not_implemented"},
      {post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "not_implemented"},
      {post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n", 400, "bad_request"},
      {"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "bad_request"},
      {post + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, "bad_request"},
      {post + "Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n", 400, "bad_request"},
      {post + "Transfer-Encoding: chunked\r\n\r\n3e9\r\n", 413, "body_too_large"},
      {post + "Transfer-Encoding: chunked\r\n\r\n1ffffffffffffffff\r\n", 400, "bad_request"},
      {post + "Transfer-Encoding: chunked\r\n\r\n1;a=" + std::string(40'000, 'a'), 400,
       "bad_request"},
      {post + "Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\na", 415, "unsupported_encoding"},
      {post + "Expect: the best\r\nContent-Length: 1\r\n\r\na", 417, "expectation_failed"},
  };
  for (const Case& each : cases) {
    HttpClient client(server.port());
    client.send(each.bytes);
    const ReceivedResponse response = client.read_response();
    EXPECT_EQ(response.status, each.status) << each.bytes.substr(0, 200);
    EXPECT_EQ(error_code_of(response), each.code) << each.bytes.substr(0, 200);
    EXPECT_EQ(response.header("Connection"), "close");
    EXPECT_TRUE(client.ended()) << each.bytes.substr(0, 200);
  }
  EXPECT_TRUE(serves(server));
  EXPECT_TRUE(test::wait_until([&] { return server.open_requests() == 0; }));
}

}  // namespace
}  // namespace zi
