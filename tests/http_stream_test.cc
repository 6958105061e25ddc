#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "serve/http/http_server.h"
#include "tests/http_fixture.h"

namespace zi {
namespace {

using test::event_stream;
using test::HeldReplies;
using test::HttpClient;
using test::on_any_port;
using test::ReceivedResponse;
using test::text_response;
using test::wait_until;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(HttpStream, ReachesTheClientAsItIsWritten) {
  HeldReplies held;
  HttpClient client(held.port());
  client.get("/");
  const auto reply = held.next();
  reply->begin_stream(event_stream());
  EXPECT_THAT(client.read_to("\r\n\r\n"), HasSubstr("Content-Type: text/event-stream"));
  for (int i = 0; i < 100; ++i) {
    const std::string text = "data: " + std::to_string(i) + "\n\n";
    reply->write(text);
    reply->write("");  // would be the end
    EXPECT_EQ(client.read_chunk(), text);
  }
  EXPECT_EQ(held.server().open_requests(), 1);
  reply->end();
  EXPECT_EQ(client.read_chunk(), "");
  EXPECT_TRUE(wait_until([&] { return held.server().open_requests() == 0; }));
  EXPECT_FALSE(reply->left());
  client.get("/echo");
  EXPECT_EQ(client.read_response().body, "GET /echo ");
}

TEST(HttpStream, IsFilledWhileNothingIsWritten) {
  HttpOptions options = on_any_port();
  options.filler_interval = std::chrono::milliseconds(100);
  HeldReplies held(options);
  HttpResponse head = event_stream();
  head.filler = ": still here\n\n";
  for (const bool chunked : {true, false}) {
    HttpClient client(held.port());
    client.send(chunked ? "GET / HTTP/1.1\r\nHost: x\r\n\r\n" : "GET / HTTP/1.0\r\n\r\n");
    const auto reply = held.next();
    reply->begin_stream(head);
    EXPECT_THAT(client.read_to("\r\n\r\n"), HasSubstr("200 OK"));
    const auto next = [&] { return chunked ? *client.read_chunk() : client.read_to("\n\n"); };
    EXPECT_EQ(next(), head.filler);
    EXPECT_EQ(next(), head.filler);
    reply->write("data: 1\n\n");
    EXPECT_EQ(next(), "data: 1\n\n");
    EXPECT_EQ(next(), head.filler);
    reply->end();
  }
}

TEST(HttpStream, IsNotFilledWhileSomethingIsWrittenNorWithoutAFiller) {
  HttpOptions options = on_any_port();
  options.filler_interval = std::chrono::milliseconds(400);
  HeldReplies held(options);
  HttpResponse head = event_stream();
  for (const std::string filler : {": still here\n\n", ""}) {
    head.filler = filler;
    HttpClient client(held.port());
    client.get("/");
    const auto reply = held.next();
    reply->begin_stream(head);
    for (int i = 0; i < 40; ++i) {
      if (!filler.empty()) reply->write("data: 1\n\n");
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    reply->end();
    EXPECT_THAT(client.read_response().body, Not(HasSubstr("here")));
  }
}

TEST(HttpStream, AFillerDoesNotComeBehindWhatAClientHasNotRead) {
  HttpOptions options = on_any_port();
  options.filler_interval = std::chrono::milliseconds(50);
  HeldReplies held(options);
  HttpClient slow(held.port(), 4096);
  slow.get("/");
  const auto reply = held.next();
  HttpResponse head = event_stream();
  head.filler = ": still here\n\n";
  reply->begin_stream(head);
  reply->write(std::string(7'000'000, 'a'));  // more than the system buffers
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  reply->end();
  EXPECT_THAT(slow.read_response().body.substr(6'000'000), Not(HasSubstr("still")));
}

TEST(HttpStream, EndsWithTheConnectionForHttp10) {
  HeldReplies held;
  HttpClient client(held.port());
  client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  const auto reply = held.next();
  reply->begin_stream(event_stream());
  reply->write("a");
  reply->write("b");
  reply->end();
  const ReceivedResponse response = client.read_response();
  EXPECT_EQ(response.header("Transfer-Encoding"), std::nullopt);
  EXPECT_EQ(response.header("Connection"), "close");
  EXPECT_EQ(response.body, "ab");
}

TEST(HttpStream, ThatIsDroppedBeforeItsEndIsSeenNotToBeWhole) {
  ::testing::internal::CaptureStderr();
  {
    HeldReplies held;
    HttpClient client(held.port());
    client.get("/");
    auto reply = held.next();
    reply->begin_stream(event_stream());
    reply->write("half");
    reply.reset();
    const ReceivedResponse response = client.read_response();
    EXPECT_EQ(response.body, "half");
    EXPECT_FALSE(response.whole);
  }
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("dropped before its end"));
}

TEST(HttpStream, ASlowClientGetsEveryByte) {
  HeldReplies held;
  HttpClient slow(held.port(), 4096);
  slow.get("/");
  const auto reply = held.next();
  reply->begin_stream(event_stream());
  std::string all;
  for (int i = 0; i < 50'000; ++i) {
    const std::string text = "data: " + std::to_string(i) + "\n\n";
    reply->write(text);
    all += text;
  }
  reply->end();
  const ReceivedResponse response = slow.read_response();
  EXPECT_TRUE(response.whole);
  EXPECT_EQ(response.body, all);
}

TEST(HttpStream, AWholeAnswerMayBeLongerThanAStreamMayWait) {
  HttpOptions options = on_any_port();
  options.max_unsent = 1000;
  HeldReplies held(options);
  HttpClient client(held.port());
  client.get("/");
  const std::string text(std::size_t{20} << 20, 'x');
  held.next()->send(text_response(text));
  const ReceivedResponse response = client.read_response();
  EXPECT_TRUE(response.whole);
  EXPECT_EQ(response.body.size(), text.size());
}

/// The clients of many streams, on one thread: connects, asks for `/i`, and reads until the end.
class ManyStreams {
 public:
  ManyStreams(std::uint16_t port, int count) {
    for (int i = 0; i < count; ++i) {
      clients_.push_back(std::make_unique<HttpClient>(port));
      clients_.back()->get("/" + std::to_string(i));
      ::fcntl(clients_.back()->socket(), F_SETFL, O_NONBLOCK);
    }
    received_.resize(clients_.size());
  }

  /// What each stream received, the framing with it, once all have ended.
  const std::vector<std::string>& read_all() {
    std::vector<pollfd> open;
    for (const auto& client : clients_) open.push_back({client->socket(), POLLIN, 0});
    std::size_t left = open.size();
    while (left > 0 && ::poll(open.data(), open.size(), 60'000) > 0) {
      for (std::size_t i = 0; i < open.size(); ++i) {
        if (open[i].revents == 0) continue;
        char bytes[4096];
        const ssize_t count = ::recv(open[i].fd, bytes, sizeof(bytes), 0);
        if (count > 0) received_[i].append(bytes, static_cast<std::size_t>(count));
        if (count == 0 || received_[i].ends_with("\r\n0\r\n\r\n")) {
          open[i].fd = -1;
          --left;
        }
      }
    }
    return received_;
  }

 private:
  std::vector<std::unique_ptr<HttpClient>> clients_;
  std::vector<std::string> received_;
};

TEST(HttpStream, AThousandAtOnceEachGetTheirOwnText) {
  constexpr int kStreams = 1000;
  constexpr int kEvents = 30;
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_max < 3 * kStreams) GTEST_SKIP() << "needs " << 3 * kStreams << " open files";
  limit.rlim_cur = std::max<rlim_t>(limit.rlim_cur, 3 * kStreams);
  ::setrlimit(RLIMIT_NOFILE, &limit);

  std::mutex mutex;
  std::vector<std::pair<std::string, std::shared_ptr<HttpReply>>> streams;
  HttpServer server(on_any_port(), [&](HttpRequest request, std::shared_ptr<HttpReply> reply) {
    reply->begin_stream(event_stream());
    const std::lock_guard lock(mutex);
    streams.emplace_back(request.path, std::move(reply));
  });
  ManyStreams clients(server.port(), kStreams);
  ASSERT_TRUE(wait_until([&] { return server.open_requests() == kStreams; }));
  ASSERT_TRUE(wait_until([&] {
    const std::lock_guard lock(mutex);
    return streams.size() == kStreams;
  }));
  std::thread passes([&] {
    for (int event = 0; event < kEvents; ++event) {
      for (const auto& [path, reply] : streams) {
        reply->write(path + ":" + std::to_string(event) + ";");
      }
    }
    for (const auto& [path, reply] : streams) reply->end();
  });
  const std::vector<std::string>& received = clients.read_all();
  passes.join();
  for (int i = 0; i < kStreams; ++i) {
    std::string expected;
    for (int event = 0; event < kEvents; ++event) {
      const std::string text = "/" + std::to_string(i) + ":" + std::to_string(event) + ";";
      char size[20];
      std::snprintf(size, sizeof(size), "%zx\r\n", text.size());
      expected += size + text + "\r\n";
    }
    const std::string& got = received[static_cast<std::size_t>(i)];
    const std::size_t body = got.find("\r\n\r\n");
    ASSERT_NE(body, std::string::npos);
    ASSERT_EQ(got.substr(body + 4), expected + "0\r\n\r\n") << i;
  }
  EXPECT_TRUE(wait_until([&] { return server.open_requests() == 0; }));
}

}  // namespace
}  // namespace zi
