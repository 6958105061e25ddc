#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <deque>
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

using test::echo;
using test::HttpClient;
using test::on_any_port;
using test::ReceivedResponse;
using test::serves;
using test::text_response;
using test::wait_until;
using ::testing::HasSubstr;

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

bool serves_beside(HeldReplies& held) {
  HttpClient client(held.port());
  client.get("/echo");
  return client.read_response().status == 200;
}

HttpResponse event_stream() {
  HttpResponse head;
  head.content_type = "text/event-stream";
  return head;
}

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

enum class Leaving { kClose, kReset, kHalfClose };

class HttpLeaving : public ::testing::TestWithParam<Leaving> {
 protected:
  static void leave(HttpClient& client) {
    if (GetParam() == Leaving::kClose) client.close();
    if (GetParam() == Leaving::kReset) client.reset();
    if (GetParam() == Leaving::kHalfClose) client.shut_down_sending();
  }
};

TEST_P(HttpLeaving, IsNoticedWhileAnAnswerIsComputed) {
  HeldReplies held;
  HttpClient client(held.port());
  client.get("/");
  const auto reply = held.next();
  std::atomic<int> calls{0};
  reply->on_left([&] { ++calls; });
  EXPECT_FALSE(reply->left());
  leave(client);
  EXPECT_TRUE(wait_until([&] { return calls == 1; }));
  EXPECT_TRUE(reply->left());
  reply->send(text_response("in vain"));
  EXPECT_TRUE(wait_until([&] { return held.server().open_requests() == 0; }));
  EXPECT_EQ(calls, 1);
  EXPECT_TRUE(serves_beside(held));
}

TEST_P(HttpLeaving, IsNoticedInMidStreamEvenWhenNothingIsWritten) {
  HeldReplies held;
  HttpClient client(held.port());
  client.get("/");
  auto reply = held.next();
  reply->begin_stream(event_stream());
  reply->write("data: 1\n\n");
  EXPECT_THAT(client.read_to("data: 1\n\n"), HasSubstr("200 OK"));
  std::atomic<int> calls{0};
  reply->on_left([&] { ++calls; });
  leave(client);
  EXPECT_TRUE(wait_until([&] { return calls == 1; }));
  for (int i = 0; i < 1000; ++i) reply->write("data: more\n\n");
  reply->end();
  EXPECT_TRUE(wait_until([&] { return held.server().open_requests() == 0; }));
  EXPECT_EQ(calls, 1);
}

TEST_P(HttpLeaving, IsToldToThoseWhoAskAfterwards) {
  HeldReplies held;
  HttpClient client(held.port());
  client.get("/");
  const auto reply = held.next();
  leave(client);
  EXPECT_TRUE(wait_until([&] { return reply->left(); }));
  std::atomic<int> calls{0};
  std::mutex mutex;
  {
    const std::lock_guard lock(mutex);  // so it must not be called on this thread
    reply->on_left([&] {
      const std::lock_guard again(mutex);
      ++calls;
    });
  }
  EXPECT_TRUE(wait_until([&] { return calls == 1; }));
}

INSTANTIATE_TEST_SUITE_P(Ways, HttpLeaving,
                         ::testing::Values(Leaving::kClose, Leaving::kReset, Leaving::kHalfClose));

TEST(HttpStream, AClientThatOnlyEndsItsDirectionGetsItsAnswers) {
  HeldReplies held;
  HttpClient client(held.port());
  client.send(
      "GET /echo HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\nGET /unfinished");
  client.shut_down_sending();
  EXPECT_EQ(client.read_response().body, "GET /echo ");
  const auto reply = held.next();
  EXPECT_TRUE(wait_until([&] { return reply->left(); }));
  reply->send(text_response("second"));
  EXPECT_EQ(client.read_response().body, "second");
  EXPECT_TRUE(client.ended());
}

TEST(HttpStream, LeavingIsNoticedBehindMoreBytesThanAreReadAhead) {
  HeldReplies held;
  HttpClient client(held.port());
  client.get("/");
  const auto reply = held.next();
  std::atomic<int> calls{0};
  reply->on_left([&] { ++calls; });
  client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" +
              std::string(100'000, 'a'));
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_EQ(calls, 0);
  client.close();
  EXPECT_TRUE(wait_until([&] { return calls == 1; }));
}

TEST(HttpStream, LeavingBehindTheEndOfAnAnswerIsNotTold) {
  HeldReplies held;
  std::atomic<int> calls{0};
  std::shared_ptr<HttpReply> reply;
  {
    HttpClient client(held.port());
    client.get("/");
    reply = held.next();
    reply->on_left([&] { ++calls; });
    reply->send(text_response("all"));
    EXPECT_EQ(client.read_response().body, "all");
  }
  held.destroy_server();
  reply->on_left([&] { ++calls; });
  EXPECT_EQ(calls, 0);
  EXPECT_FALSE(reply->left());
}

TEST(HttpStream, ACallbackMayHoldWhatHoldsTheReplyAsLongAsTheAnswerEnds) {
  HeldReplies held;
  struct Request {
    std::shared_ptr<HttpReply> reply;
  };
  std::weak_ptr<Request> alive;
  HttpClient client(held.port());
  client.get("/");
  {
    const auto request = std::make_shared<Request>(Request{held.next()});
    alive = request;
    request->reply->on_left([request] {});
    request->reply->send(text_response("all"));
  }
  EXPECT_EQ(client.read_response().body, "all");
  EXPECT_TRUE(alive.expired());
}

TEST(HttpStream, AClientThatDoesNotReadIsCutOffAndHoldsNobodyUp) {
  HttpOptions options = on_any_port();
  options.max_unsent = 1 << 20;
  options.send_timeout = std::chrono::minutes(10);
  HeldReplies held(options);
  HttpClient stuck(held.port(), 4096);
  stuck.get("/");
  const auto reply = held.next();
  std::atomic<int> calls{0};
  reply->on_left([&] { ++calls; });
  reply->begin_stream(event_stream());
  std::size_t written = 0;
  for (; !reply->left() && written < std::size_t{64} << 20; written += 65536) {
    reply->write(std::string(65536, 'a'));
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // so that the system's buffers fill
  }
  EXPECT_LT(written, std::size_t{32} << 20);
  EXPECT_TRUE(wait_until([&] { return calls == 1; }));
  EXPECT_TRUE(wait_until([&] { return held.server().open_requests() == 0; }));
  reply->write("more");
  reply->end();
  EXPECT_TRUE(serves_beside(held));
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

TEST(HttpStream, AClientThatTakesNothingForTooLongIsCutOff) {
  HttpOptions options = on_any_port();
  options.send_timeout = std::chrono::milliseconds(200);
  HeldReplies held(options);
  HttpClient stuck(held.port(), 4096);
  stuck.get("/");
  const auto reply = held.next();
  std::atomic<int> calls{0};
  reply->on_left([&] { ++calls; });
  reply->begin_stream(event_stream());
  // Within the limit of unsent bytes, beyond what the system buffers.
  for (int i = 0; i < 7; ++i) reply->write(std::string(1 << 20, 'a'));
  EXPECT_TRUE(wait_until([&] { return calls == 1; }));
  EXPECT_TRUE(wait_until([&] { return held.server().open_requests() == 0; }));
}

TEST(HttpStream, TheServersEndIsToldToOpenRequestsAndNothingIsCalledAfterwards) {
  HeldReplies held;
  std::atomic<int> calls{0};
  std::vector<std::unique_ptr<HttpClient>> clients;
  std::vector<std::shared_ptr<HttpReply>> replies;
  for (int i = 0; i < 20; ++i) {
    clients.push_back(std::make_unique<HttpClient>(held.port()));
    clients.back()->get("/");
    replies.push_back(held.next());
    replies.back()->on_left([&] { ++calls; });
    if (i % 2 == 0) replies.back()->begin_stream(event_stream());
  }
  held.destroy_server();
  EXPECT_EQ(calls, 20);
  for (const auto& reply : replies) {
    EXPECT_TRUE(reply->left());
    reply->on_left([&] { ++calls; });
    reply->send(text_response("in vain"));
    reply->begin_stream(event_stream());
    reply->write("in vain");
    reply->end();
  }
  for (const auto& client : clients) client->read_to_end();
  EXPECT_EQ(calls, 20);
}

TEST(HttpStream, RepliesMayBeUsedByAnyThreadsWhileClientsLeaveAndTheServerEnds) {
  HeldReplies held;
  std::atomic<bool> stop{false};
  std::atomic<int> calls{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      for (int turn = 0; !stop; ++turn) {
        HttpClient client(held.port());
        if (!client.connected()) continue;
        client.get("/");
        if (turn % 3 == 0) client.read_bytes(100);
        if (turn % 3 == 1) client.reset();
      }
    });
  }
  std::vector<std::shared_ptr<HttpReply>> replies;
  for (int i = 0; i < 200; ++i) {
    auto reply = held.next();
    reply->on_left([&] { ++calls; });
    reply->begin_stream(event_stream());
    replies.push_back(std::move(reply));
    for (std::size_t j = replies.size() > 8 ? replies.size() - 8 : 0; j < replies.size(); ++j) {
      replies[j]->write("data: some text\n\n");
      if ((i + static_cast<int>(j)) % 11 == 0) replies[j]->end();
    }
  }
  std::thread writer([&] {
    for (int i = 0; i < 200; ++i) {
      for (const auto& reply : replies) reply->write("data: some text\n\n");
    }
  });
  held.destroy_server();
  const int calls_at_end = calls;
  writer.join();
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(calls, calls_at_end);
  EXPECT_GT(calls, 0);
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
