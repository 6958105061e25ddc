#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "serve/http/http_server.h"
#include "tests/http_fixture.h"

namespace zi {
namespace {

using std::chrono::milliseconds;
using test::echo;
using test::HttpClient;
using test::on_any_port;
using test::ReceivedResponse;
using test::serves;
using test::text_response;
using test::wait_until;
using ::testing::HasSubstr;

HttpOptions impatient(std::chrono::milliseconds HttpOptions::*timeout) {
  HttpOptions options = on_any_port();
  options.*timeout = milliseconds(200);
  return options;
}

TEST(HttpLimits, AHeadThatComesTooSlowlyIsRefusedHoweverItTrickles) {
  HttpServer server(impatient(&HttpOptions::header_timeout), echo);
  HttpClient client(server.port());
  client.send("GET / HTTP/1.1\r\nHost: x\r\n");
  std::thread trickle([&] {
    for (int i = 0; i < 50 && client.send("A: b\r\n") > 0; ++i) {
      std::this_thread::sleep_for(milliseconds(20));
    }
  });
  EXPECT_EQ(client.read_response().status, 408);
  trickle.join();
  EXPECT_TRUE(serves(server));
}

TEST(HttpLimits, ABodyThatComesTooSlowlyIsRefusedHoweverItTrickles) {
  HttpServer server(impatient(&HttpOptions::body_timeout), echo);
  HttpClient client(server.port());
  client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n");
  std::thread trickle([&] {
    for (int i = 0; i < 50 && client.send("a") > 0; ++i) {
      std::this_thread::sleep_for(milliseconds(20));
    }
  });
  EXPECT_EQ(client.read_response().status, 408);
  trickle.join();
  EXPECT_TRUE(serves(server));
}

TEST(HttpLimits, ALongBodyHasMoreTimeTheMoreOfItComes) {
  HttpOptions options = on_any_port();
  options.body_timeout = milliseconds(500);
  HttpServer server(options, echo);
  HttpClient client(server.port());
  const std::string quarter(100'000, 'a');
  client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 400000\r\n\r\n" + quarter);
  for (int i = 0; i < 3; ++i) {
    std::this_thread::sleep_for(milliseconds(250));
    client.send(quarter);
  }
  EXPECT_EQ(client.read_response().body.size(), 400'000 + std::string("POST / ").size());
}

TEST(HttpLimits, IdleConnectionsAreClosedWithoutAWord) {
  HttpServer server(impatient(&HttpOptions::idle_timeout), echo);
  HttpClient idle(server.port());
  idle.get("/");
  EXPECT_EQ(idle.read_response().status, 200);
  EXPECT_TRUE(idle.ended());
  HttpServer impatient_server(impatient(&HttpOptions::header_timeout), echo);
  HttpClient silent(impatient_server.port());
  EXPECT_TRUE(silent.ended());
}

TEST(HttpLimits, AnAnswerMayTakeLongerThanAnyTimeout) {
  HttpOptions options = on_any_port();
  options.header_timeout = options.body_timeout = options.idle_timeout = options.send_timeout =
      milliseconds(500);
  HttpServer server(options, [](HttpRequest, std::shared_ptr<HttpReply> reply) {
    std::this_thread::sleep_for(milliseconds(800));
    reply->begin_stream(text_response(""));
    reply->write("a");
    std::this_thread::sleep_for(milliseconds(800));
    reply->write("b");
    reply->end();
  });
  HttpClient client(server.port());
  client.post("/", "body");
  const ReceivedResponse response = client.read_response();
  EXPECT_EQ(response.body, "ab");
  EXPECT_TRUE(response.whole);
}

TEST(HttpLimits, ClientsThatVanishInMidRequestAreForgotten) {
  std::atomic<int> calls{0};
  HttpServer server(on_any_port(), [&](HttpRequest request, std::shared_ptr<HttpReply> reply) {
    ++calls;
    echo(std::move(request), std::move(reply));
  });
  for (int i = 0; i < 20; ++i) {
    HttpClient client(server.port());
    client.send(i % 2 == 0 ? "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf"
                           : "POST / HTTP/1.1\r\nHo");
    if (i % 3 == 0) client.reset();
  }
  EXPECT_TRUE(wait_until([&] { return server.open_requests() == 0; }));
  EXPECT_TRUE(serves(server));
  EXPECT_EQ(calls, 1);
}

TEST(HttpLimits, ABodyThatIsTooLongIsRefusedWithoutBeingRead) {
  HttpOptions options = on_any_port();
  options.max_body = 1 << 20;
  HttpServer server(options, echo);
  const std::string body(std::size_t{100} << 20, 'a');
  for (const std::string& framing :
       {"Content-Length: " + std::to_string(body.size()) + "\r\n\r\n",
        std::string("Transfer-Encoding: chunked\r\n\r\n6400000\r\n")}) {
    HttpClient client(server.port());
    client.send("POST / HTTP/1.1\r\nHost: x\r\n" + framing);
    EXPECT_EQ(client.read_response().status, 413);
    // What the server ignores, and what the system buffers.
    EXPECT_LT(client.send(body), std::size_t{32} << 20);
  }
  EXPECT_TRUE(serves(server));
}

TEST(HttpLimits, ARefusalDoesNotResetTheConnectionOfAClientThatIsStillSending) {
  HttpOptions options = on_any_port();
  options.max_body = 1000;
  HttpServer server(options, echo);
  const std::string body(500'000, 'a');
  HttpClient client(server.port());
  client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n");
  EXPECT_EQ(client.read_response().status, 413);
  EXPECT_EQ(client.send(body), body.size());
  EXPECT_TRUE(client.ended());
  std::this_thread::sleep_for(milliseconds(50));
  EXPECT_EQ(client.send("and more"), 8u);
}

TEST(HttpLimits, BodiesOfAllRequestsTogetherAreBounded) {
  HttpOptions options = on_any_port();
  options.max_body = 1000;
  options.max_bodies = 1500;
  HttpServer server(options, echo);
  const std::string sized = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n";
  HttpClient first(server.port());
  first.send(sized + std::string(999, 'a'));
  // Until these have come: asked by a client that takes nothing itself, else it could be the one
  // that is let in.
  ASSERT_TRUE(wait_until([&] {
    HttpClient second(server.port());
    second.send(
        "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
        "Content-Length: 1000\r\n\r\n");
    return second.read_response().status == 503;
  }));
  for (const std::string& request :
       {sized, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n258\r\n" +
                   std::string(600, 'a')}) {
    HttpClient second(server.port());
    second.send(request);
    const ReceivedResponse response = second.read_response();
    EXPECT_EQ(response.status, 503);
    EXPECT_TRUE(response.header("Retry-After"));
  }
  first.send("a");
  EXPECT_EQ(first.read_response().status, 200);
  // What it took is there again.
  EXPECT_TRUE(wait_until([&] {
    HttpClient next(server.port());
    next.post("/", std::string(1000, 'a'));
    return next.read_response().status == 200;
  }));
}

TEST(HttpLimits, BodiesThatAreOnlyAnnouncedKeepNobodyOut) {
  HttpOptions options = on_any_port();
  options.max_body = 1000;
  options.max_bodies = 2000;
  HttpServer server(options, echo);
  std::vector<std::unique_ptr<HttpClient>> silent;
  for (int i = 0; i < 64; ++i) {
    silent.push_back(std::make_unique<HttpClient>(server.port()));
    silent.back()->send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\na");
  }
  ASSERT_TRUE(wait_until([&] { return server.open_requests() == 64; }));
  HttpClient client(server.port());
  client.post("/", std::string(900, 'a'));
  EXPECT_EQ(client.read_response().status, 200);
}

TEST(HttpLimits, ABodyOfWhichMuchCameFastMayNotStopForLong) {
  HttpServer server(impatient(&HttpOptions::body_timeout), echo);
  HttpClient client(server.port());
  const auto begin = std::chrono::steady_clock::now();
  client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n" +
              std::string(1'900'000, 'a'));  // which would be worth 29 seconds
  EXPECT_EQ(client.read_response().status, 408);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(15));
}

TEST(HttpLimits, ConnectionsBeyondTheLimitAreToldToComeBack) {
  HttpOptions options = on_any_port();
  options.max_connections = 3;
  HttpServer server(options, echo);
  std::vector<std::unique_ptr<HttpClient>> open;
  for (int i = 0; i < 3; ++i) {
    open.push_back(std::make_unique<HttpClient>(server.port()));
    open.back()->get("/");
    EXPECT_EQ(open.back()->read_response().status, 200);
  }
  HttpClient beyond(server.port());
  beyond.get("/");
  const ReceivedResponse response = beyond.read_response();
  EXPECT_EQ(response.status, 503);
  EXPECT_TRUE(response.header("Retry-After"));
  EXPECT_THAT(response.body, HasSubstr("too many connections"));
  EXPECT_TRUE(beyond.ended());
  std::vector<std::unique_ptr<HttpClient>> flood;
  for (int i = 0; i < 200; ++i) flood.push_back(std::make_unique<HttpClient>(server.port()));
  open.front()->get("/");
  EXPECT_EQ(open.front()->read_response().status, 200);
  int told = 0;
  for (const auto& client : flood) told += client->read_response().status == 503 ? 1 : 0;
  EXPECT_GT(told, 30);
  EXPECT_LT(told, 150);  // the others were closed at once
  flood.clear();
  beyond.close();
  open.pop_back();
  EXPECT_TRUE(wait_until([&] { return serves(server); }));
}

TEST(HttpLimits, ConnectionsThatWereRefusedTakeNoPlace) {
  HttpOptions options = on_any_port();
  options.max_connections = 1;
  HttpServer server(options, echo);
  auto only = std::make_unique<HttpClient>(server.port());
  only->get("/");
  EXPECT_EQ(only->read_response().status, 200);
  std::vector<std::unique_ptr<HttpClient>> refused;  // and stay, as long as the server lets them
  for (int i = 0; i < 8; ++i) {
    refused.push_back(std::make_unique<HttpClient>(server.port()));
    refused.back()->get("/");
    EXPECT_EQ(refused.back()->read_response().status, 503);
  }
  only.reset();
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_TRUE(wait_until([&] { return serves(server); }));
  // The server lets go of the refused ones, whose clients do not close, after two seconds.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(1500));
}

}  // namespace
}  // namespace zi
