// How `zero-infer serve` ends, as its clients see it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "cli_harness.h"
#include "cli_server_job.h"
#include "http_client.h"

namespace zi::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::HasSubstr;

TEST(CliServeEnd, TheFirstSignalLetsRunningRequestsEndAndTakesNoOthers) {
  for (const int ranks : {0, 2}) {
    // Patience for a busy machine: 600 tokens may take longer there than the default.
    ServerJob server(ranks, {"--drain-seconds", "600"});
    HttpClient running = server.client();
    json body = endless(true);
    body["max_tokens"] = 600;
    body["temperature"] = 0;
    running.post("/v1/completions", body.dump());
    running.read_to("\"text\"");
    HttpClient kept = server.client();
    kept.get("/health");
    EXPECT_EQ(kept.read_response().status, 200);
    // mpirun would kill the ranks soon after SIGTERM.
    server.job().signal(ranks == 0 ? SIGTERM : SIGUSR1);
    int health = 200;
    for (int i = 0; i < 200 && health == 200; ++i) {
      health = server.get("/health").status;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    EXPECT_EQ(health, 503);
    kept.post("/v1/completions", R"({"prompt": "a"})");
    EXPECT_EQ(kept.read_response().status, 503);
    EXPECT_THAT(running.read_to("[DONE]\n\n"), HasSubstr("\"finish_reason\":\"length\""));
    const Ended ended = server.job().wait();
    EXPECT_EQ(ended.code, 0) << ended.err;
    EXPECT_THAT(ended.err, HasSubstr("no new requests"));
  }
}

TEST(CliServeEnd, ASecondSignalAndAnEndOfPatienceGiveClientsAnError) {
  for (const bool patience : {false, true}) {
    ServerJob server(0, {"--drain-seconds", patience ? "1" : "600"});
    HttpClient running = server.client();
    running.post("/v1/completions", endless(true).dump());
    running.read_to("\"text\"");
    HttpClient waiting = server.client();
    waiting.post("/v1/completions", endless(false).dump());
    EXPECT_TRUE(server.comes_to("vllm:num_requests_running", 2));
    server.job().signal(SIGTERM);
    if (!patience) {
      while (server.get("/health").status == 200) {
      }
      server.job().signal(SIGTERM);
    }
    EXPECT_THAT(running.read_to_end(), HasSubstr(R"({"error":{"message":"the server was stopped)"));
    EXPECT_EQ(waiting.read_response().status, 503);
    const Ended ended = server.job().wait();
    EXPECT_EQ(ended.code, 128 + SIGTERM) << ended.err;
  }
}

TEST(CliServeEnd, AKilledRankEndsTheServerWithItsNameAndClientsGetAnError) {
  ServerJob server(2);
  std::vector<HttpClient> clients;
  for (int i = 0; i < 4; ++i) {
    clients.push_back(server.client());
    clients.back().post("/v1/completions", endless(true).dump());
  }
  for (HttpClient& client : clients) client.read_to("\"text\"");
  HttpClient waiting = server.client();
  waiting.post("/v1/completions", endless(false).dump());
  ASSERT_TRUE(server.comes_to("vllm:num_requests_running", 5));
  const std::vector<int> pids = server.job().rank_pids();
  ASSERT_EQ(pids.size(), 2U);
  kill(*std::ranges::max_element(pids), SIGKILL);  // rank 1 was started last
  for (HttpClient& client : clients) {
    EXPECT_THAT(client.read_to_end(), HasSubstr("\"error\":{\"message\":\""));
  }
  EXPECT_GE(waiting.read_response().status, 500);
  const Ended ended = server.job().wait();
  EXPECT_NE(ended.code, 0);
  EXPECT_THAT(ended.err, HasSubstr("rank 1"));
}

/// Clients of requests that handlers are busy with for seconds.
std::vector<HttpClient> clients_of_long_handlers(const ServerJob& server, int count) {
  std::string text;
  for (int i = 0; i < 7'000'000; ++i) text += "a ";
  const std::string body = json{{"prompt", text}}.dump();
  std::vector<HttpClient> clients;
  for (int i = 0; i < count; ++i) {
    clients.push_back(server.client());
    clients.back().post("/tokenize", body);
  }
  return clients;
}

void wait_for_log(ServerJob& server, const std::string& text) {
  for (int i = 0; i < 500 && server.job().err().find(text) == std::string::npos; ++i) {
    std::this_thread::sleep_for(milliseconds(20));
  }
}

TEST(CliServeEnd, ASecondSignalIsNotHeldUpByHandlers) {
  ServerJob server(0, {"--drain-seconds", "600"});
  // More than the threads for them can be done with soon.
  std::vector<HttpClient> clients = clients_of_long_handlers(server, 12);
  EXPECT_EQ(server.get("/health").status, 200) << "waits for none of them";
  server.job().signal(SIGTERM);
  wait_for_log(server, "no new requests");
  const auto second = steady_clock::now();
  server.job().signal(SIGTERM);
  int stopped = 0;
  for (HttpClient& client : clients) {
    const ReceivedResponse response = client.read_response();
    EXPECT_TRUE(response.status == 200 || response.status == 503) << response.status;
    stopped += response.status == 503 ? 1 : 0;
  }
  EXPECT_GT(stopped, 0);
  EXPECT_EQ(server.job().wait().code, 128 + SIGTERM);
  EXPECT_LT(steady_clock::now() - second, std::chrono::seconds(8));
}

TEST(CliServeEnd, RequestsInHandlersHaveTheTimeOfTheOthers) {
  ServerJob server(0, {"--drain-seconds", "600"});
  std::vector<HttpClient> clients = clients_of_long_handlers(server, 1);
  ASSERT_EQ(server.get("/health").status, 200);
  server.job().signal(SIGTERM);
  EXPECT_EQ(clients.front().read_response().status, 200);
  EXPECT_EQ(server.job().wait().code, 0);
}

TEST(CliServeEnd, AClosedTerminalIsAFirstSignalButNotUnderNohup) {
  const auto ignoring = [](bool ignore) {
    const auto before = ::signal(SIGHUP, ignore ? SIG_IGN : SIG_DFL);  // the job inherits it
    auto server = std::make_unique<ServerJob>(0);
    ::signal(SIGHUP, before);
    return server;
  };
  const auto server = ignoring(false);
  HttpClient running = server->client();
  json body = endless(true);
  body["max_tokens"] = 600;
  running.post("/v1/completions", body.dump());
  running.read_to("\"text\"");
  server->job().signal(SIGHUP);
  EXPECT_THAT(running.read_to("[DONE]\n\n"), HasSubstr("\"finish_reason\":\"length\""));
  const Ended ended = server->job().wait();
  EXPECT_EQ(ended.code, 0) << ended.err;
  EXPECT_THAT(ended.err, HasSubstr("SIGHUP: no new requests"));

  const auto nohup = ignoring(true);
  nohup->job().signal(SIGHUP);
  std::this_thread::sleep_for(milliseconds(200));
  EXPECT_EQ(nohup->get("/health").status, 200);
  nohup->job().signal(SIGTERM);
  EXPECT_EQ(nohup->job().wait().code, 0);
}

TEST(CliServeEnd, ALogThatNobodyReadsAnyMoreDoesNotEndTheServer) {
  std::array<int, 2> log{};
  ASSERT_EQ(::pipe(log.data()), 0);
  const std::string checkpoint = model();
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::dup2(log[1], STDERR_FILENO);
    ::close(log[0]);
    ::close(log[1]);
    ::signal(SIGPIPE, SIG_DFL);
    ::execl(ZI_BINARY, "zero-infer", "serve", "--model", checkpoint.c_str(), "--port", "0",
            nullptr);
    ::_exit(127);
  }
  ::close(log[1]);
  std::string said;
  std::array<char, 512> bytes{};
  for (ssize_t count;
       port_in(said) == 0 && (count = ::read(log[0], bytes.data(), bytes.size())) > 0;) {
    said.append(bytes.data(), static_cast<std::size_t>(count));
  }
  const std::uint16_t port = port_in(said);
  EXPECT_NE(port, 0) << said;
  ::close(log[0]);
  for (const char* body : {R"({"prompt": "a", "max_tokens": 1, "named_in_the_log": 1})",
                           R"({"prompt": "a", "max_tokens": 1, "and_this": 1})"}) {
    HttpClient client(port);
    client.post("/v1/completions", body);
    EXPECT_EQ(client.read_response().status, 200);
  }
  ::kill(pid, SIGTERM);
  int status = 0;
  ::waitpid(pid, &status, 0);
  EXPECT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace zi::test
