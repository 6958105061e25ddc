#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "serve/http/http_server.h"
#include "tests/http_fixture.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using test::echo;
using test::HttpClient;
using test::on_any_port;
using test::ReceivedResponse;
using test::serves;
using test::text_response;
using test::wait_until;
using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;

/// What the server says when it is made; empty where it can be.
std::string refusal_of(const HttpOptions& options) {
  try {
    const HttpServer server(options, echo);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

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
  HttpServer server(impatient(&HttpOptions::body_timeout), echo);
  HttpClient client(server.port());
  const std::string quarter(100'000, 'a');
  client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 400000\r\n\r\n");
  for (int i = 0; i < 4; ++i) {
    client.send(quarter);
    std::this_thread::sleep_for(milliseconds(100));
  }
  EXPECT_EQ(client.read_response().body.size(), 400'000 + std::string("POST / ").size());
}

TEST(HttpLimits, IdleConnectionsAreClosedWithoutAWord) {
  HttpOptions options = impatient(&HttpOptions::idle_timeout);
  options.header_timeout = milliseconds(200);
  HttpServer server(options, echo);
  HttpClient silent(server.port());
  HttpClient idle(server.port());
  idle.get("/");
  EXPECT_EQ(idle.read_response().status, 200);
  EXPECT_TRUE(silent.ended());
  EXPECT_TRUE(idle.ended());
}

TEST(HttpLimits, AnAnswerMayTakeLongerThanAnyTimeout) {
  HttpOptions options = on_any_port();
  options.header_timeout = options.body_timeout = options.idle_timeout = options.send_timeout =
      milliseconds(50);
  HttpServer server(options, [](HttpRequest, std::shared_ptr<HttpReply> reply) {
    std::this_thread::sleep_for(milliseconds(300));
    reply->begin_stream(text_response(""));
    reply->write("a");
    std::this_thread::sleep_for(milliseconds(300));
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

TEST(HttpLimits, ARefusalReachesAClientThatIsStillSending) {
  HttpOptions options = on_any_port();
  options.max_body = 1 << 20;
  HttpServer server(options, echo);
  for (int i = 0; i < 20; ++i) {
    HttpClient client(server.port());
    client.post("/", std::string(1'500'000, 'a'));  // sends all before it reads
    EXPECT_EQ(client.read_response().status, 413);
  }
}

TEST(HttpLimits, BodiesOfAllRequestsTogetherAreBounded) {
  HttpOptions options = on_any_port();
  options.max_body = 1000;
  options.max_bodies = 1500;
  HttpServer server(options, echo);
  const std::string sized = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n";
  HttpClient first(server.port());
  first.send(sized);
  ASSERT_TRUE(wait_until([&] { return server.open_requests() == 1; }));
  for (const std::string& request :
       {sized, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n258\r\n" +
                   std::string(600, 'a')}) {
    HttpClient second(server.port());
    second.send(request);
    const ReceivedResponse response = second.read_response();
    EXPECT_EQ(response.status, 503);
    EXPECT_TRUE(response.header("Retry-After"));
  }
  first.send(std::string(1000, 'a'));
  EXPECT_EQ(first.read_response().status, 200);
  // What it took is there again.
  EXPECT_TRUE(wait_until([&] {
    HttpClient next(server.port());
    next.post("/", std::string(1000, 'a'));
    return next.read_response().status == 200;
  }));
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
  flood.clear();
  beyond.close();
  open.pop_back();
  EXPECT_TRUE(wait_until([&] { return serves(server); }));
}

TEST(HttpLimits, APortInUseIsNamedWithItsAddress) {
  const HttpServer server(on_any_port(), echo);
  HttpOptions options = on_any_port();
  options.port = server.port();
  EXPECT_THAT(refusal_of(options),
              AllOf(HasSubstr("127.0.0.1:" + std::to_string(server.port())),
                    HasSubstr("Address already in use"), HasSubstr("another port")));
}

TEST(HttpLimits, HostsThatCannotBeListenedOnAreNamed) {
  HttpOptions options = on_any_port();
  options.host = "no.such.host.invalid";
  EXPECT_THAT(refusal_of(options), HasSubstr("`no.such.host.invalid`"));
  options.host = "";
  EXPECT_THAT(refusal_of(options), HasSubstr("cannot listen"));
  options.host = "192.0.2.1";  // for documentation: nobody has it
  EXPECT_THAT(refusal_of(options), HasSubstr("192.0.2.1:0"));
}

TEST(HttpLimits, OptionsThatCannotWorkAreRefused) {
  HttpOptions options = on_any_port();
  options.threads = 0;
  EXPECT_THAT(refusal_of(options), HasSubstr("0 threads"));
  options = on_any_port();
  options.cors_origin = "a\r\nb";
  EXPECT_THAT(refusal_of(options), HasSubstr("CORS"));
  options = on_any_port();
  options.tls_key = "key.pem";
  EXPECT_THAT(refusal_of(options), HasSubstr("both"));
}

/// What a client of that IPv6 address receives; nothing where the machine has no IPv6.
std::optional<std::string> answer_over_ipv6(std::uint16_t port) {
  const FileDescriptor socket(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  address.sin6_port = htons(port);
  address.sin6_addr = in6addr_loopback;
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return std::nullopt;
  }
  const std::string request = "GET / HTTP/1.0\r\n\r\n";
  ::send(socket.get(), request.data(), request.size(), MSG_NOSIGNAL);
  std::string answer;
  char bytes[4096];
  for (ssize_t count; (count = ::recv(socket.get(), bytes, sizeof(bytes), 0)) > 0;) {
    answer.append(bytes, static_cast<std::size_t>(count));
  }
  return answer;
}

TEST(HttpLimits, ListensOnEveryAddressOfItsHost) {
  const auto peer = [](HttpRequest request, std::shared_ptr<HttpReply> reply) {
    reply->send(text_response(request.peer));
  };
  HttpOptions options = on_any_port();
  options.host = "::1";
  if (!refusal_of(options).empty()) GTEST_SKIP() << "this machine has no IPv6";
  for (const char* host : {"::1", "[::1]", "::"}) {
    options.host = host;
    const HttpServer server(options, peer);
    const auto answer = answer_over_ipv6(server.port());
    ASSERT_TRUE(answer);
    EXPECT_THAT(*answer, HasSubstr("\r\n\r\n[::1]:"));
    HttpClient ipv4(server.port());
    EXPECT_EQ(ipv4.connected(), options.host == "::");
    if (!ipv4.connected()) continue;
    ipv4.get("/");
    EXPECT_THAT(ipv4.read_response().body, HasSubstr("127.0.0.1:"));
  }
}

TEST(HttpLimits, ListensOnANamedHost) {
  HttpOptions options = on_any_port();
  options.host = "localhost";
  HttpServer server(options, echo);
  EXPECT_TRUE(serves(server));
}

TEST(HttpLimits, ADrainedServerAnswersWhatWasBegunAndNothingElse) {
  std::mutex held;
  std::atomic<int> begun{0};
  HttpServer server(on_any_port(), [&](HttpRequest request, std::shared_ptr<HttpReply> reply) {
    if (request.path == "/slow") {
      ++begun;
      const std::lock_guard lock(held);
    }
    echo(std::move(request), std::move(reply));
  });
  HttpClient idle(server.port());
  idle.get("/");
  EXPECT_EQ(idle.read_response().status, 200);
  std::unique_lock lock(held);
  HttpClient slow(server.port());
  slow.get("/slow");
  HttpClient half(server.port());
  half.send("POST /half HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbo");
  ASSERT_TRUE(wait_until([&] { return begun == 1 && server.open_requests() == 2; }));
  server.stop_accepting();
  EXPECT_FALSE(HttpClient(server.port()).connected());
  EXPECT_TRUE(idle.ended());
  half.send("dy");
  ReceivedResponse response = half.read_response();
  EXPECT_EQ(response.body, "POST /half body");
  EXPECT_EQ(response.header("Connection"), "close");
  EXPECT_TRUE(half.ended());
  EXPECT_EQ(server.open_requests(), 1);
  lock.unlock();
  response = slow.read_response();
  EXPECT_EQ(response.body, "GET /slow ");
  EXPECT_EQ(response.header("Connection"), "close");
  EXPECT_TRUE(slow.ended());
  EXPECT_TRUE(wait_until([&] { return server.open_requests() == 0; }));
  server.stop_accepting();  // again: nothing happens
}

TEST(HttpLimits, AServerCanBeStartedAgainAtOnceOnItsPort) {
  HttpOptions options = on_any_port();
  for (int i = 0; i < 3; ++i) {
    HttpServer server(options, echo);
    options.port = server.port();
    EXPECT_TRUE(serves(server));
    HttpClient kept(server.port());  // the server closes first, and keeps its port in TIME_WAIT
    kept.get("/");
    EXPECT_EQ(kept.read_response().status, 200);
  }
}

/// The limit of open files, set back at the end.
class OpenFilesLimit {
 public:
  OpenFilesLimit() { ::getrlimit(RLIMIT_NOFILE, &before_); }
  ~OpenFilesLimit() { set(before_.rlim_cur); }
  void set(rlim_t soft) const {
    const rlimit limit{soft, before_.rlim_max};
    ::setrlimit(RLIMIT_NOFILE, &limit);
  }
  static rlim_t soft() {
    rlimit now{};
    ::getrlimit(RLIMIT_NOFILE, &now);
    return now.rlim_cur;
  }
  rlim_t hard() const { return before_.rlim_max; }

 private:
  rlimit before_{};
};

TEST(HttpLimits, TheLimitOfOpenFilesIsRaisedToWhatConnectionsNeedOrTheLogSaysThatItIsNot) {
  const OpenFilesLimit limit;
  limit.set(64);
  HttpOptions options = on_any_port();
  options.max_connections = 500;
  ::testing::internal::CaptureStderr();
  { const HttpServer server(options, echo); }
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  EXPECT_GT(OpenFilesLimit::soft(), 564u);
  EXPECT_LT(OpenFilesLimit::soft(), 1000u);
  if (limit.hard() > 1'000'000'000) return;  // none
  options.max_connections = static_cast<int>(limit.hard());
  ::testing::internal::CaptureStderr();
  { const HttpServer server(options, echo); }
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              AllOf(HasSubstr("warning: "), HasSubstr("may have " + std::to_string(limit.hard()))));
}

TEST(HttpLimits, WithoutFreeDescriptorsNewConnectionsWaitAndTheLogSaysSoOnce) {
  const OpenFilesLimit limit;
  HttpServer server(on_any_port(), echo);
  HttpClient before(server.port());
  before.get("/");
  EXPECT_EQ(before.read_response().status, 200);
  limit.set(static_cast<rlim_t>(before.socket()) + 50);
  std::vector<FileDescriptor> all;
  ::testing::internal::CaptureStderr();
  for (int fd; (fd = ::dup(0)) >= 0;) all.emplace_back(fd);
  all.pop_back();
  HttpClient waiting(server.port());  // has the last one
  ASSERT_TRUE(waiting.connected());
  waiting.get("/waiting");
  std::this_thread::sleep_for(milliseconds(300));
  before.get("/");  // who is there is served
  EXPECT_EQ(before.read_response().status, 200);
  all.clear();
  EXPECT_EQ(waiting.read_response().body, "GET /waiting ");
  const std::string log = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(log, HasSubstr("warning: HTTP server: new connections wait: Too many open files"));
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 1);
}

TEST(HttpLimits, ThreadsOfTheServerBlockSignals) {
  const HttpServer server(on_any_port(), echo);
  int threads = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream status(task.path() / "status");
    std::string name;
    unsigned long long blocked = 0;
    for (std::string line; std::getline(status, line);) {
      if (line.starts_with("Name:")) name = line.substr(6);
      if (line.starts_with("SigBlk:")) blocked = std::stoull(line.substr(8), nullptr, 16);
    }
    if (!name.starts_with("http-")) continue;
    ++threads;
    EXPECT_TRUE((blocked >> (SIGINT - 1)) & 1) << name;
    EXPECT_TRUE((blocked >> (SIGTERM - 1)) & 1) << name;
  }
  EXPECT_EQ(threads, HttpOptions().threads + HttpOptions().io_threads);
  sigset_t mine;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &mine);
  EXPECT_FALSE(sigismember(&mine, SIGTERM));
}

}  // namespace
}  // namespace zi
