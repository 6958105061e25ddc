// `zero-infer serve`, as its clients see it: the program itself, over sockets.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <thread>

#include "cli_harness.h"
#include "cli_server_job.h"
#include "http_client.h"

namespace zi::test {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

/// The data of server-sent events.
std::vector<std::string> events_of(const std::string& body) {
  std::vector<std::string> events;
  constexpr std::string_view kData = "data: ";
  for (std::size_t at = 0; at < body.size();) {
    const auto end = body.find("\n\n", at);
    if (end == std::string::npos || body.compare(at, kData.size(), kData) != 0) {
      ADD_FAILURE() << "not an event: " << body.substr(at);
      break;
    }
    events.push_back(body.substr(at + kData.size(), end - at - kData.size()));
    at = end + 2;
  }
  return events;
}

/// The text of a whole stream of one completion.
std::string streamed_text(const ReceivedResponse& response) {
  std::string text;
  const std::vector<std::string> events = events_of(response.body);
  EXPECT_FALSE(events.empty());
  if (events.empty()) return text;
  EXPECT_EQ(events.back(), "[DONE]");
  for (std::size_t i = 0; i + 1 < events.size(); ++i) {
    text += json::parse(events[i]).at("choices").at(0).at("text");
  }
  return text;
}

/// What a job without a server makes of the prompts: results by id.
std::map<std::string, json> offline(const std::string& prompts,
                                    const std::vector<std::string>& more = {}) {
  const TemporaryFolder folder;
  write_file(folder / "in.jsonl", prompts);
  std::vector<std::string> arguments = {"--model",           model(),    "--prompts",
                                        folder / "in.jsonl", "--output", folder / "out.jsonl"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  const Ended ended = run_job(0, arguments);
  EXPECT_EQ(ended.code, 0) << ended.err;
  std::map<std::string, json> by_id;
  for (json& line : json_lines(read_file(folder / "out.jsonl"))) {
    by_id[line.at("id").get<std::string>()] = line;
  }
  return by_id;
}

class CliServe : public testing::TestWithParam<int> {};

TEST_P(CliServe, AnswersAreThoseOfAJobStreamedOrNotWithManyClientsAtOnce) {
  constexpr int kClients = 64;
  const std::string prompts = many_prompts(kClients, 40);
  const auto expected = offline(prompts);
  ServerJob server(GetParam(), {"--batch-size", "8"});
  std::vector<std::thread> clients;
  std::vector<std::string> texts(kClients);
  for (std::size_t i = 0; i < kClients; ++i) {
    clients.emplace_back([&, i] {
      const json line = json_lines(prompts).at(i);
      const json body = {{"prompt", line.at("prompt")},
                         {"max_tokens", line.at("max_new_tokens")},
                         {"temperature", 0},
                         {"stream", i % 2 == 0}};
      const ReceivedResponse response = server.post("/v1/completions", body);
      if (response.status != 200 || !response.whole) return;
      texts[i] = i % 2 == 0
                     ? streamed_text(response)
                     : json::parse(response.body).at("choices")[0].at("text").get<std::string>();
    });
  }
  for (std::thread& client : clients) client.join();
  for (std::size_t i = 0; i < kClients; ++i) {
    EXPECT_EQ(texts[i], expected.at("p" + std::to_string(i)).at("text")) << i;
  }
  EXPECT_EQ(server.metric("vllm:num_requests_running"), 0);
  EXPECT_EQ(server.metric("vllm:time_to_first_token_seconds_count"), kClients);
}

TEST_P(CliServe, ScoresAreThoseOfAJob) {
  const std::string text = "In the beginning God created the heaven and the earth.";
  const std::string line = json{{"id", "a"}, {"prompt", text}}.dump() + "\n";
  const json expected = offline(line, {"--score"}).at("a");
  ServerJob server(GetParam());
  const json answer = server.complete(
      {{"prompt", text}, {"max_tokens", 1}, {"logprobs", 1}, {"echo", true}, {"temperature", 0}});
  const json logprobs = answer.at("choices")[0].at("logprobs").at("token_logprobs");
  ASSERT_EQ(logprobs.size(), expected.at("token_logprobs").size() + 2) << "the first, the new one";
  EXPECT_EQ(logprobs[0], nullptr);
  for (std::size_t i = 0; i < expected.at("token_logprobs").size(); ++i) {
    EXPECT_NEAR(logprobs[i + 1].get<double>(), expected["token_logprobs"][i].get<double>(), 1e-4);
  }
}

TEST_P(CliServe, AClientThatLeavesFreesItsLane) {
  ServerJob server(GetParam(), {"--batch-size", "1"});
  std::vector<HttpClient> clients;
  for (int i = 0; i < std::max(GetParam(), 1); ++i) {
    clients.push_back(server.client());
    clients.back().post("/v1/completions", endless(true).dump());
    clients.back().read_to("\"text\"");
  }
  EXPECT_EQ(server.metric("vllm:num_requests_running"), std::max(GetParam(), 1));
  HttpClient silent = server.client();  // waits, and is no stream
  silent.post("/v1/completions", endless(false).dump());
  EXPECT_TRUE(server.comes_to("vllm:num_requests_waiting", 1));
  silent.close();
  EXPECT_TRUE(server.comes_to("vllm:num_requests_waiting", 0));
  for (HttpClient& client : clients) client.reset();
  EXPECT_TRUE(server.comes_to("vllm:num_requests_running", 0));
  EXPECT_EQ(server.metric("zero_infer_requests_cancelled_total"), std::max(GetParam(), 1) + 1);
  EXPECT_EQ(server.metric("vllm:kv_cache_usage_perc"), 0);
  EXPECT_EQ(
      server.complete({{"prompt", "Jesus wept."}, {"max_tokens", 2}})["usage"]["completion_tokens"],
      2);
}

INSTANTIATE_TEST_SUITE_P(Ranks, CliServe, testing::Values(0, 2));

TEST(CliServeQueue, MoreThanItHoldsAreToldToComeAgainAndTheOthersAreAnswered) {
  ServerJob server(0, {"--batch-size", "1", "--max-queue", "3"});
  HttpClient running = server.client();
  running.post("/v1/completions", endless(true).dump());
  running.read_to("\"text\"");
  std::vector<HttpClient> accepted;
  for (int i = 0; i < 3; ++i) {
    accepted.push_back(server.client());
    accepted.back().post("/v1/completions", json{{"prompt", "a"}, {"max_tokens", 3}}.dump());
    ASSERT_TRUE(server.comes_to("vllm:num_requests_waiting", i + 1));
  }
  for (int i = 0; i < 10; ++i) {
    const ReceivedResponse full = server.post("/v1/completions", {{"prompt", "a"}});
    EXPECT_EQ(full.status, 429);
    EXPECT_GE(std::stoi(full.header("Retry-After").value_or("0")), 1);
  }
  running.close();
  for (HttpClient& client : accepted) EXPECT_EQ(client.read_response().status, 200);
}

TEST(CliServeClients, BadOnesGetAnErrorEachAndTheServerServesOn) {
  ServerJob server(0, {"--max-body", "1MiB", "--served-model-name", "kjv", "--api-key", "k"});
  const std::string key = "Authorization: Bearer k\r\n";
  const auto status_of = [&](const std::string& body) {
    HttpClient client = server.client();
    client.post("/v1/completions", body, key);
    const ReceivedResponse response = client.read_response();
    EXPECT_TRUE(json::parse(response.body).contains("error")) << response.body;
    return response.status;
  };
  EXPECT_EQ(server.post("/v1/completions", {{"prompt", "a"}}).status, 401);
  EXPECT_EQ(server.get("/health").status, 200);
  EXPECT_EQ(status_of("{\"prompt\": \"\xff\"}"), 400);
  EXPECT_EQ(status_of(std::string(100'000, '[')), 400);
  EXPECT_EQ(status_of(R"({"prompt": "a", "max_tokens": -1})"), 400);
  EXPECT_EQ(status_of(R"({"prompt": "a", "model": "other"})"), 404);
  EXPECT_EQ(status_of(R"({"prompt": [1000000]})"), 400);
  EXPECT_EQ(status_of("{\"prompt\": \"" + std::string(2 << 20, 'a') + "\"}"), 413);
  HttpClient half = server.client();
  half.send("POST /v1/completions HTTP/1.1\r\nHost: x\r\n" + key +
            "Content-Length: 100\r\n\r\n{\"pro");
  half.reset();
  HttpClient client = server.client();
  client.post("/v1/completions", R"({"prompt": "a", "max_tokens": 1, "model": "kjv"})", key);
  EXPECT_EQ(client.read_response().status, 200);
}

TEST(CliServeStart, RefusesAPortThatIsTakenAndWhatIsForJobs) {
  ServerJob server(0);
  const std::string port = server.job().err().substr(server.job().err().rfind(' ') + 1);
  const Ended taken =
      run_job(2, {"serve", "--model", model(), "--port", port.substr(0, port.find('\n'))});
  EXPECT_EQ(taken.code, 2) << taken.err;
  EXPECT_THAT(taken.err, HasSubstr("already in use"));
  const Ended job_flag = run_job(0, {"serve", "--model", model(), "--output", "o.jsonl"});
  EXPECT_EQ(job_flag.code, 2);
  EXPECT_THAT(job_flag.err, HasSubstr("--output is for a job"));
}

}  // namespace
}  // namespace zi::test
