// Requests between the HTTP threads, the pass loop and the thread of answers.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "serve/metrics.h"
#include "serve/request_queue.h"
#include "serve/request_sink.h"
#include "text/result.h"

namespace zi {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::IsEmpty;

/// Keeps what it is told, as text.
class LoggedAnswer final : public PendingAnswer {
 public:
  void started(std::size_t number) override { log.push_back("started " + std::to_string(number)); }
  void told(std::size_t number, const Delta& delta) override {
    log.push_back("told " + std::to_string(number) + " " + delta.text);
  }
  void finished(std::size_t number, Result result) override {
    log.push_back("finished " + std::to_string(number) + " " + result.text);
  }
  void failed(const ApiError& error) override {
    log.push_back(std::string("failed ") + error.what());
  }
  std::vector<std::string> log;
};

std::vector<Prompt> prompts(std::size_t count) { return std::vector<Prompt>(count); }

std::vector<std::uint64_t> indices(const std::vector<Prompt>& taken) {
  std::vector<std::uint64_t> all;
  for (const Prompt& prompt : taken) all.push_back(prompt.index);
  return all;
}

class RequestQueueTest : public testing::Test {
 protected:
  std::shared_ptr<LoggedAnswer> answer() {
    answers_kept_.push_back(std::make_shared<LoggedAnswer>());
    return answers_kept_.back();
  }
  Result result(std::uint64_t index, const std::string& text) {
    Result r;
    r.index = index;
    r.text = text;
    r.token_ids = {1, 2};
    r.finish_reason = "eos";
    return r;
  }
  Delta delta(const std::string& text) {
    Delta d;
    d.text = text;
    d.new_tokens = 1;
    return d;
  }
  /// The end of a pass.
  void pass() {
    sink.ranks({});
    ASSERT_TRUE(answers.flush(5s));
  }
  int status_of(std::size_t count) {
    try {
      queue.submit(prompts(count), answer());
    } catch (const ApiError& error) {
      retry_after = error.retry_after();
      return error.status();
    }
    return 0;
  }

  AnswerThread answers;
  RequestQueue queue{4, answers};
  Metrics metrics;
  RequestSink sink{queue, answers, metrics};
  int retry_after = 0;

 private:
  std::vector<std::shared_ptr<LoggedAnswer>> answers_kept_;
};

TEST_F(RequestQueueTest, GivesPromptsInTheOrderInWhichTheyCame) {
  queue.submit(prompts(2), answer());
  queue.submit(prompts(1), answer());
  EXPECT_EQ(queue.waiting(), 3U);
  EXPECT_THAT(indices(queue.take(2, false)), ElementsAre(0, 1));
  queue.submit(prompts(1), answer());
  EXPECT_THAT(indices(queue.take(9, false)), ElementsAre(2, 3));
  EXPECT_THAT(queue.take(9, false), IsEmpty());
  EXPECT_EQ(queue.open(), 3U);
}

TEST_F(RequestQueueTest, TakesAllPromptsOfARequestOrNone) {
  EXPECT_EQ(status_of(3), 0);
  EXPECT_EQ(status_of(2), 429);
  EXPECT_GE(retry_after, 1);
  EXPECT_EQ(queue.waiting(), 3U);
  EXPECT_EQ(status_of(1), 0);
  EXPECT_EQ(status_of(1), 429);
  queue.take(4, false);
  EXPECT_EQ(status_of(4), 0) << "what runs does not wait";
  EXPECT_EQ(status_of(5), 400) << "it would never have room";
}

TEST_F(RequestQueueTest, MakesEachChoiceAsItIsTakenWithADrawOfItsOwn) {
  std::vector<Prompt> two = prompts(2);
  for (std::size_t p = 0; p < 2; ++p) {
    two[p].ids = {static_cast<std::int32_t>(p)};
    two[p].own.seed = 7;
  }
  queue.submit(two, answer(), 2);
  EXPECT_EQ(queue.waiting(), 4U);
  EXPECT_EQ(status_of(1), 429) << "each choice has a place of its own";
  for (std::size_t number = 0; number < 4; ++number) {
    const std::vector<Prompt> taken = queue.take(1, false);
    ASSERT_EQ(taken.size(), 1U);
    EXPECT_EQ(taken[0].index, number);
    EXPECT_THAT(*taken[0].ids, ElementsAre(static_cast<std::int32_t>(number / 2)));
    EXPECT_EQ(taken[0].own.seed, 7U);
    EXPECT_EQ(taken[0].own.draw_number, number % 2);
  }
}

TEST_F(RequestQueueTest, TellsEachAnswerOfItsOwnPromptsInOrder) {
  const auto first = answer(), second = answer();
  queue.submit(prompts(2), first);
  queue.submit(prompts(1), second);
  queue.take(3, false);
  sink.started(1, 0, "");
  sink.told(1, delta("a"));
  sink.finished(result(2, "z"));
  pass();
  sink.told(1, delta("b"));
  sink.finished(result(1, "ab"));
  EXPECT_EQ(queue.open(), 1U);
  sink.finished(result(0, "x"));
  pass();
  EXPECT_THAT(first->log,
              ElementsAre("started 1", "told 1 a", "told 1 b", "finished 1 ab", "finished 0 x"));
  EXPECT_THAT(second->log, ElementsAre("finished 0 z"));
  EXPECT_EQ(queue.open(), 0U);
}

TEST_F(RequestQueueTest, APromptThatFailsEndsItsWholeRequest) {
  const auto one = answer(), other = answer();
  queue.submit(prompts(3), one);
  queue.submit(prompts(1), other);
  queue.take(2, false);
  sink.failed(1, "NaN");
  sink.finished(result(0, "too late"));
  pass();
  EXPECT_THAT(one->log, ElementsAre("failed NaN"));
  EXPECT_THAT(queue.cancelled(), ElementsAre(0, 1)) << "what runs of it is cancelled";
  EXPECT_THAT(queue.cancelled(), IsEmpty()) << "each is told once";
  EXPECT_THAT(indices(queue.take(9, false)), ElementsAre(3)) << "what waits of it never runs";
}

TEST_F(RequestQueueTest, ACancelledRequestLeavesTheQueueAndItsLanes) {
  const auto left = answer();
  const auto ticket = queue.submit(prompts(3), left);
  queue.submit(prompts(1), answer());
  queue.take(1, false);
  queue.cancel(ticket);
  EXPECT_EQ(queue.waiting(), 1U);
  EXPECT_THAT(queue.cancelled(), ElementsAre(0));
  EXPECT_EQ(queue.cancelled_requests(), 1U);
  sink.told(0, delta("a"));
  sink.finished(result(0, "a"));
  pass();
  EXPECT_THAT(left->log, IsEmpty()) << "nobody is there to be told";
  EXPECT_EQ(left.use_count(), 2) << "the queue and its thread have let it go";
  queue.cancel(ticket);
  queue.cancel(99);
  EXPECT_EQ(queue.cancelled_requests(), 1U);
}

TEST_F(RequestQueueTest, CancellingAfterTheEndDoesNothing) {
  const auto ticket = queue.submit(prompts(1), answer());
  queue.take(1, false);
  sink.finished(result(0, "a"));
  queue.cancel(ticket);
  EXPECT_THAT(queue.cancelled(), IsEmpty());
  EXPECT_EQ(queue.cancelled_requests(), 0U);
}

TEST_F(RequestQueueTest, OnceClosedItRunsWhatWaitsAndIsThenExhausted) {
  queue.submit(prompts(1), answer());
  EXPECT_FALSE(queue.exhausted());
  queue.close();
  EXPECT_EQ(status_of(1), 503);
  EXPECT_FALSE(queue.exhausted()) << "a prompt waits";
  EXPECT_THAT(queue.take(9, false).size(), 1U);
  EXPECT_TRUE(queue.exhausted());
}

TEST_F(RequestQueueTest, AbandonedRequestsGetAnErrorWhetherTheyRunOrWait) {
  const auto running = answer(), waiting = answer();
  queue.submit(prompts(1), running);
  queue.take(1, false);
  queue.submit(prompts(1), waiting);
  queue.abandon(ApiError::failed("the end"));
  sink.told(0, delta("a"));
  sink.finished(result(0, "a"));
  pass();
  EXPECT_THAT(running->log, ElementsAre("failed the end"));
  EXPECT_THAT(waiting->log, ElementsAre("failed the end"));
  EXPECT_TRUE(queue.exhausted());
  EXPECT_THAT(queue.cancelled(), ElementsAre(0));
}

TEST_F(RequestQueueTest, WaitingEndsAsARequestComes) {
  std::atomic<bool> submitted{false};
  std::thread client([&] {
    std::this_thread::sleep_for(5ms);
    submitted = true;
    queue.submit(prompts(1), answer());
  });
  // Each wait may also end by itself, so that the caller can look at signals.
  while (queue.waiting() == 0) queue.wait();
  EXPECT_TRUE(submitted);
  client.join();
  EXPECT_EQ(queue.take(1, true).size(), 1U);
}

TEST_F(RequestQueueTest, ManyThreadsMaySubmitAndCancelWhilePromptsAreTaken) {
  constexpr int kThreads = 4, kRequests = 200;
  std::atomic<int> refused{0};
  std::vector<std::thread> clients;
  for (int t = 0; t < kThreads; ++t) {
    clients.emplace_back([&, t] {
      for (int i = 0; i < kRequests; ++i) {
        try {
          const auto ticket = queue.submit(prompts(1), std::make_shared<LoggedAnswer>());
          if (i % 3 == t % 3) queue.cancel(ticket);
        } catch (const ApiError&) {
          ++refused;
        }
      }
    });
  }
  std::size_t taken = 0;
  std::atomic<bool> all_in{false};
  std::thread end([&] {
    for (std::thread& client : clients) client.join();
    all_in = true;
    queue.close();
  });
  while (!queue.exhausted()) {
    for (const Prompt& prompt : queue.take(3, true)) {
      ++taken;
      sink.told(prompt.index, delta("a"));
      sink.finished(result(prompt.index, "a"));
    }
    sink.ranks({});
    queue.cancelled();
  }
  end.join();
  pass();
  EXPECT_TRUE(all_in);
  EXPECT_EQ(queue.open(), 0U);
  EXPECT_GE(taken + static_cast<std::size_t>(refused) + queue.cancelled_requests(),
            static_cast<std::size_t>(kThreads * kRequests));
}

TEST(AnswerThreadTest, AnAnswerThatThrowsDoesNotEndTheOthers) {
  AnswerThread answers;
  const auto answer = std::make_shared<LoggedAnswer>();
  testing::internal::CaptureStderr();
  std::vector<AnswerThread::Task> tasks = {
      {answer, [](PendingAnswer&) { throw std::runtime_error("broken"); }},
      {answer, [](PendingAnswer& a) { a.started(7); }}};
  answers.post(tasks);
  EXPECT_TRUE(tasks.empty());
  ASSERT_TRUE(answers.flush(5s));
  EXPECT_THAT(testing::internal::GetCapturedStderr(), testing::HasSubstr("broken"));
  EXPECT_THAT(answer->log, ElementsAre("started 7"));
}

TEST(MetricsTest, CountsWhatPromptsTookAndWhatRanksDo) {
  Metrics metrics;
  std::vector<RankStatus> ranks(2);
  for (RankStatus& rank : ranks) {
    rank.lanes = 8;
    rank.active = 3;
    rank.kv_pages = 10;
    rank.kv_pages_used = 5;
    rank.prompt_rows = 100;
    rank.new_tokens = 7;
    rank.moved[Link::kCopy] = 4096;
  }
  metrics.ranks(ranks);
  Result r;
  r.token_ids = {1, 2, 3};
  r.finish_reason = "eos";
  r.first_token_seconds = 0.5;
  r.seconds = 2.5;
  metrics.finished(r, 3.5, false);  // a second in the queue, two for two more tokens
  r.finish_reason = "length";
  metrics.finished(r, 3.5, true);
  metrics.token(0.25);
  PerLink<double> limits;
  limits[Link::kCopy] = 5e10;
  const std::string text =
      metrics.text({.model = "a \"b\"", .waiting = 4, .cancelled_requests = 2, .limits = limits});
  for (const std::string line :
       {"vllm:num_requests_running{model_name=\"a \\\"b\\\"\"} 6",
        "vllm:num_requests_waiting{model_name=\"a \\\"b\\\"\"} 4",
        "vllm:kv_cache_usage_perc{model_name=\"a \\\"b\\\"\"} 0.5",
        "vllm:prompt_tokens_total{model_name=\"a \\\"b\\\"\"} 200",
        "vllm:generation_tokens_total{model_name=\"a \\\"b\\\"\"} 14",
        "vllm:request_success_total{model_name=\"a \\\"b\\\"\",finished_reason=\"stop\"} 1",
        "vllm:request_success_total{model_name=\"a \\\"b\\\"\",finished_reason=\"length\"} 1",
        "vllm:time_to_first_token_seconds_bucket{model_name=\"a \\\"b\\\"\",le=\"1\"} 0",
        "vllm:time_to_first_token_seconds_bucket{model_name=\"a \\\"b\\\"\",le=\"2.5\"} 2",
        "vllm:time_to_first_token_seconds_sum{model_name=\"a \\\"b\\\"\"} 3",
        "vllm:time_to_first_token_seconds_count{model_name=\"a \\\"b\\\"\"} 2",
        "vllm:inter_token_latency_seconds_sum{model_name=\"a \\\"b\\\"\"} 2.25",
        "vllm:inter_token_latency_seconds_count{model_name=\"a \\\"b\\\"\"} 3",
        "vllm:inter_token_latency_seconds_bucket{model_name=\"a \\\"b\\\"\",le=\"+Inf\"} 3",
        "vllm:e2e_request_latency_seconds_sum{model_name=\"a \\\"b\\\"\"} 7",
        "vllm:request_queue_time_seconds_sum{model_name=\"a \\\"b\\\"\"} 2",
        "zero_infer_link_bytes_total{rank=\"1\",link=\"copy\"} 4096",
        "zero_infer_link_limit_bytes_per_second{rank=\"0\",link=\"copy\"} 50000000000",
        "zero_infer_lanes{rank=\"0\"} 8",
        "zero_infer_requests_cancelled_total{model_name=\"a \\\"b\\\"\"} 2"}) {
    EXPECT_NE(text.find(line + "\n"), std::string::npos) << line << "\nis not in\n" << text;
  }
}

}  // namespace
}  // namespace zi
