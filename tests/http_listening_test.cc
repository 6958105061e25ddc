#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
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

#include "base/system_error.h"
#include "serve/http/http_server.h"
#include "tests/http_fixture.h"
#include "zero_infer/error.h"
#include "zero_infer/log.h"

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
using ::testing::AllOf;
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

TEST(HttpListening, APortInUseIsNamedWithItsAddress) {
  const HttpServer server(on_any_port(), echo);
  HttpOptions options = on_any_port();
  options.port = server.port();
  EXPECT_THAT(refusal_of(options),
              AllOf(HasSubstr("127.0.0.1:" + std::to_string(server.port())),
                    HasSubstr("Address already in use"), HasSubstr("another port")));
}

TEST(HttpListening, HostsThatCannotBeListenedOnAreNamed) {
  HttpOptions options = on_any_port();
  options.host = "no.such.host.invalid";
  EXPECT_THAT(refusal_of(options), HasSubstr("`no.such.host.invalid`"));
  options.host = "";
  EXPECT_THAT(refusal_of(options), HasSubstr("cannot listen"));
  options.host = "192.0.2.1";  // for documentation: nobody has it
  EXPECT_THAT(refusal_of(options), HasSubstr("192.0.2.1:0"));
}

TEST(HttpListening, OptionsThatCannotWorkAreRefused) {
  HttpOptions options = on_any_port();
  options.threads = 0;
  EXPECT_THAT(refusal_of(options), HasSubstr("0 threads"));
  options = on_any_port();
  options.max_body = std::size_t{3} << 30;
  EXPECT_THAT(refusal_of(options), HasSubstr("allowed 3.00 GiB, all together only 1.00 GiB"));
  options.max_body = 0;
  EXPECT_THAT(refusal_of(options), HasSubstr("1 byte at least"));
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

TEST(HttpListening, ListensOnEveryAddressOfItsHost) {
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

TEST(HttpListening, ListensOnANamedHost) {
  HttpOptions options = on_any_port();
  options.host = "localhost";
  HttpServer server(options, echo);
  EXPECT_TRUE(serves(server));
}

TEST(HttpListening, ADrainedServerAnswersWhatWasBegunAndNothingElse) {
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
  // A client has its answer before the server forgets the request; `half` would not be counted yet.
  ASSERT_TRUE(wait_until([&] { return server.open_requests() == 0; }));
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

TEST(HttpListening, AServerCanBeStartedAgainAtOnceOnItsPort) {
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

TEST(HttpListening, TheLimitOfOpenFilesIsRaisedToWhatConnectionsNeedOrTheLogSaysThatItIsNot) {
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

TEST(HttpListening, WithoutFreeDescriptorsNewConnectionsWaitAndTheLogSaysSoOnce) {
  const OpenFilesLimit limit;
  HttpServer server(on_any_port(), echo);
  HttpClient before(server.port());
  before.get("/");
  EXPECT_EQ(before.read_response().status, 200);
  limit.set(static_cast<rlim_t>(before.socket()) + 50);
  std::vector<FileDescriptor> all;
  ::testing::internal::CaptureStderr();
  // The sanitizers need descriptors to check the first call of a virtual function.
  log_warning(system_message(EMFILE));
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
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 2);
}

TEST(HttpListening, ThreadsOfTheServerBlockSignals) {
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
  EXPECT_EQ(threads, HttpOptions().threads + HttpOptions().io_threads + 1);
  sigset_t mine;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &mine);
  EXPECT_FALSE(sigismember(&mine, SIGTERM));
}

}  // namespace
}  // namespace zi
