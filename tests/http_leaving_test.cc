#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "serve/http/http_server.h"
#include "tests/http_fixture.h"

namespace zi {
namespace {

using test::event_stream;
using test::HeldReplies;
using test::HttpClient;
using test::on_any_port;
using test::serves_beside;
using test::text_response;
using test::wait_until;
using ::testing::HasSubstr;

enum class Leaving { kClose, kReset, kHalfClose };

class HttpLeavingWays : public ::testing::TestWithParam<Leaving> {
 protected:
  static void leave(HttpClient& client) {
    if (GetParam() == Leaving::kClose) client.close();
    if (GetParam() == Leaving::kReset) client.reset();
    if (GetParam() == Leaving::kHalfClose) client.shut_down_sending();
  }
};

TEST_P(HttpLeavingWays, IsNoticedWhileAnAnswerIsComputed) {
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

TEST_P(HttpLeavingWays, IsNoticedInMidStreamEvenWhenNothingIsWritten) {
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

TEST_P(HttpLeavingWays, IsToldToThoseWhoAskAfterwards) {
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

INSTANTIATE_TEST_SUITE_P(Each, HttpLeavingWays,
                         ::testing::Values(Leaving::kClose, Leaving::kReset, Leaving::kHalfClose));

TEST(HttpLeaving, AClientThatOnlyEndsItsDirectionGetsItsAnswers) {
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

TEST(HttpLeaving, ARequestThatIsDroppedBecauseItsClientLeftIsClosedWithoutAWord) {
  ::testing::internal::CaptureStderr();
  {
    HeldReplies held;
    for (const bool in_stream : {false, true}) {
      HttpClient client(held.port());
      client.get("/");
      auto reply = held.next();
      if (in_stream) {
        reply->begin_stream(event_stream());
        EXPECT_THAT(client.read_to("\r\n\r\n"), HasSubstr("200 OK"));
      }
      client.shut_down_sending();
      EXPECT_TRUE(wait_until([&] { return reply->left(); }));
      reply.reset();
      EXPECT_TRUE(client.ended());
    }
  }
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

TEST(HttpLeaving, LeavingIsNoticedBehindMoreBytesThanAreReadAhead) {
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

TEST(HttpLeaving, LeavingBehindTheEndOfAnAnswerIsNotTold) {
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
    const auto owned = std::make_shared<int>();
    reply->on_left([&, owned] { ++calls; });
    EXPECT_EQ(owned.use_count(), 1);  // will never be called
  }
  held.destroy_server();
  reply->on_left([&] { ++calls; });
  EXPECT_EQ(calls, 0);
  EXPECT_FALSE(reply->left());
}

TEST(HttpLeaving, ACallbackMayBeTheLastToHoldItsReplyWhenTheAnswerEnds) {
  HeldReplies held;
  struct Request {
    std::shared_ptr<HttpReply> reply;
  };
  HttpClient client(held.port());
  client.get("/");
  auto request = std::make_shared<Request>(Request{held.next()});
  const std::weak_ptr<Request> alive = request;
  HttpReply& reply = *request->reply;
  reply.on_left([owned = std::move(request)] {});
  EXPECT_FALSE(alive.expired());
  reply.send(text_response("all"));
  EXPECT_TRUE(alive.expired());
  EXPECT_EQ(client.read_response().body, "all");
}

TEST(HttpLeaving, AClientThatDoesNotReadIsCutOffAndHoldsNobodyUp) {
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

TEST(HttpLeaving, AClientThatTakesNothingForTooLongIsCutOff) {
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

TEST(HttpLeaving, TheServersEndIsToldToOpenRequestsAndNothingIsCalledAfterwards) {
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

TEST(HttpLeaving, RepliesMayBeUsedByAnyThreadsWhileClientsLeaveAndTheServerEnds) {
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

}  // namespace
}  // namespace zi
