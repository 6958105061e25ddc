// What clients get: the shapes of answers and of streams.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "serve/chat_answer.h"
#include "serve/completion_answer.h"
#include "serve_fixture.h"

namespace zi {
namespace {

using test::byte_model;
using test::FakeReply;
using test::ids_of_text;
using test::json;
using testing::ElementsAre;
using testing::StartsWith;

TokenLogprob token(char c, float logprob, std::vector<std::pair<std::int32_t, float>> top = {}) {
  return {static_cast<unsigned char>(c), logprob, std::move(top)};
}

Result result(const std::string& text, const std::string& finish_reason = "length") {
  Result r;
  r.text = text;
  r.token_ids = ids_of_text(text);
  r.finish_reason = finish_reason;
  return r;
}

Delta delta(const std::string& text) {
  Delta d;
  d.text = text;
  d.new_tokens = std::ssize(text);
  return d;
}

/// A request for `choices` choices of each prompt.
GenerationRequest request_for(const std::vector<std::string>& prompts, AnswerShape shape = {}) {
  GenerationRequest request;
  shape.id = "the-id";
  shape.created = 123;
  shape.model = "bytes";
  request.shape = shape;
  for (const std::string& text : prompts) {
    Prompt prompt;
    prompt.ids = ids_of_text(text);
    request.prompts.push_back(prompt);
    request.prompt_texts.push_back(text);
  }
  return request;
}

template <typename AnswerType>
struct Answered {
  explicit Answered(GenerationRequest request)
      : answer(std::make_shared<AnswerType>(reply, byte_model(), std::move(request))) {}
  std::shared_ptr<FakeReply> reply = std::make_shared<FakeReply>();
  std::shared_ptr<AnswerType> answer;
};
json usage(int prompt_tokens, int new_tokens, int cached_tokens) {
  return {{"prompt_tokens", prompt_tokens},
          {"completion_tokens", new_tokens},
          {"total_tokens", prompt_tokens + new_tokens},
          {"prompt_tokens_details", {{"cached_tokens", cached_tokens}}}};
}

using Completion = Answered<CompletionAnswer>;
using Chat = Answered<ChatAnswer>;

TEST(CompletionAnswerTest, HasTheShapeOfTheApi) {
  Completion c(request_for({"ab"}));
  c.answer->finished(0, result("xyz", "stop"));
  EXPECT_EQ(c.reply->head.status, 200);
  EXPECT_EQ(c.reply->head.content_type, "application/json");
  EXPECT_EQ(
      c.reply->sent(),
      json({{"id", "the-id"},
            {"object", "text_completion"},
            {"created", 123},
            {"model", "bytes"},
            {"system_fingerprint", c.reply->sent().at("system_fingerprint")},
            {"choices",
             {{{"index", 0}, {"text", "xyz"}, {"logprobs", nullptr}, {"finish_reason", "stop"}}}},
            {"usage", usage(2, 3, 0)}}));
}

TEST(CompletionAnswerTest, SaysWhatOfItsPromptsEarlierRequestsHadComputed) {
  Completion c(request_for({"abcdef", "gh"}, {.choices = 2}));
  for (const auto& [number, cached] :
       std::vector<std::pair<std::size_t, std::int64_t>>{{1, 6}, {0, 4}, {2, 0}, {3, 1}}) {
    Result r = result("x");
    r.cached_tokens = cached;
    c.answer->finished(number, r);
  }
  EXPECT_EQ(c.reply->sent()["usage"], usage(8, 4, 4));
}

TEST(CompletionAnswerTest, WaitsForAllChoicesAndCountsEachPromptOnce) {
  Completion c(request_for({"ab", "c"}, {.choices = 2}));
  for (const std::size_t number : {3U, 0U, 2U}) {
    c.answer->finished(number, result(std::string(number + 1, 'x')));
    EXPECT_EQ(c.reply->answers, 0);
  }
  c.answer->finished(1, result("xx"));
  const json sent = c.reply->sent();
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(sent["choices"][i]["index"], i);
    EXPECT_EQ(sent["choices"][i]["text"], std::string(i + 1, 'x'));
  }
  EXPECT_EQ(sent["usage"]["prompt_tokens"], 3);
  EXPECT_EQ(sent["usage"]["completion_tokens"], 10);
}

TEST(CompletionAnswerTest, CallsTheEndOfTextAStop) {
  for (const auto& [ours, theirs] : std::vector<std::pair<std::string, std::string>>{
           {"eos", "stop"}, {"stop", "stop"}, {"length", "length"}, {"", "length"}}) {
    Completion c(request_for({"a"}));
    c.answer->finished(0, result("x", ours));
    EXPECT_EQ(c.reply->sent()["choices"][0]["finish_reason"], theirs);
  }
}

TEST(CompletionAnswerTest, ListsLogprobsWithTheTokenAmongTheBest) {
  Completion c(request_for({"ab"}, {.logprobs = 2}));
  Result r = result("xy");
  r.logprobs = {token('x', -0.5F, {{'x', -0.5F}, {'z', -1.5F}}),
                token('y', -3.25F, {{'z', -0.1F}, {'w', -2.0F}})};
  c.answer->finished(0, r);
  EXPECT_EQ(c.reply->sent()["choices"][0]["logprobs"],
            json({{"tokens", {"x", "y"}},
                  {"token_logprobs", {-0.5, -3.25}},
                  {"top_logprobs",
                   {{{"x", -0.5}, {"z", -1.5}}, {{"z", -0.1}, {"w", -2.0}, {"y", -3.25}}}},
                  {"text_offset", {0, 1}}}));
}

TEST(CompletionAnswerTest, EchoesThePromptWithItsLogprobs) {
  Completion c(request_for({"ab"}, {.echo = true, .logprobs = 1}));
  Result r = result("x");
  r.prompt_logprobs = {token('b', -2, {{'c', -1}, {'d', -1.25F}})};  // more than asked for
  r.logprobs = {token('x', -0.5F, {{'x', -0.5F}})};
  c.answer->finished(0, r);
  const json choice = c.reply->sent()["choices"][0];
  EXPECT_EQ(choice["text"], "abx");
  EXPECT_EQ(choice["logprobs"],
            json({{"tokens", {"a", "b", "x"}},
                  {"token_logprobs", {nullptr, -2, -0.5}},
                  {"top_logprobs", {nullptr, {{"c", -1}, {"b", -2}}, {{"x", -0.5}}}},
                  {"text_offset", {0, 1, 2}}}));
}

TEST(CompletionAnswerTest, AnEchoWithoutNewTokensIsThePromptAlone) {
  for (const bool stream : {false, true}) {
    Completion c(request_for({"ab"}, {.stream = stream, .echo = true, .logprobs = 0}));
    Result r = result("", "");
    r.prompt_logprobs = {token('b', -2)};
    c.answer->finished(0, r);
    const json choice =
        stream ? c.reply->events().at(0)["choices"][0] : c.reply->sent()["choices"][0];
    EXPECT_EQ(choice["text"], "ab");
    EXPECT_EQ(choice["logprobs"]["token_logprobs"], json({nullptr, -2}));
    EXPECT_EQ(choice["finish_reason"], "length");
  }
}

TEST(CompletionAnswerTest, WritesPartsOfCharactersAndImpossibleTokens) {
  Completion c(request_for({"a"}, {.logprobs = 0}));
  Result r = result("€!");
  r.logprobs = {token('\xe2', -1), token('\x82', -1), token('\xac', -1),
                token('!', -std::numeric_limits<float>::infinity())};
  c.answer->finished(0, r);
  const json logprobs = c.reply->sent()["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["tokens"], json({"bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "!"}));
  EXPECT_EQ(logprobs["text_offset"], json({0, 0, 0, 1})) << "in characters";
  EXPECT_EQ(logprobs["token_logprobs"][3], -9999);
}

TEST(CompletionAnswerTest, NamesTokensByTheirIdsWhereThatIsAskedFor) {
  Completion c(request_for({"a"}, {.logprobs = 1, .tokens_as_ids = true}));
  Result r = result("x");
  r.logprobs = {token('x', -1, {{'y', -0.5F}})};
  c.answer->finished(0, r);
  const json logprobs = c.reply->sent()["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["tokens"], json({"token_id:120"}));
  EXPECT_EQ(logprobs["top_logprobs"][0], json({{"token_id:120", -1}, {"token_id:121", -0.5}}));
}

TEST(CompletionAnswerTest, GivesPromptLogprobsAsVllmDoes) {
  Completion c(request_for({"ab"}, {.prompt_logprobs = 1}));
  Result r = result("x");
  r.prompt_logprobs = {token('b', -2, {{'c', -1}})};
  c.answer->finished(0, r);
  EXPECT_EQ(c.reply->sent()["choices"][0]["prompt_logprobs"],
            json({nullptr,
                  {{"98", {{"logprob", -2}, {"rank", nullptr}, {"decoded_token", "b"}}},
                   {"99", {{"logprob", -1}, {"rank", 1}, {"decoded_token", "c"}}}}}));
}

TEST(CompletionStream, IsEventsOfNewTextAndTheEnd) {
  Completion c(request_for({"ab"}, {.stream = true}));
  EXPECT_FALSE(c.reply->streamed);
  c.answer->accepted();
  EXPECT_TRUE(c.reply->streamed) << "however long it waits";
  c.answer->started(0);
  EXPECT_EQ(c.reply->body, "") << "nothing to say before there is text";
  c.answer->told(0, delta("x"));
  EXPECT_EQ(c.reply->answers, 1) << "one head";
  EXPECT_TRUE(c.reply->head.filler.starts_with(":") && c.reply->head.filler.ends_with("\n\n"))
      << "a comment";
  EXPECT_THAT(c.reply->head.content_type, StartsWith("text/event-stream"));
  c.answer->told(0, delta(""));  // half a character
  c.answer->told(0, delta("yz"));
  EXPECT_FALSE(c.reply->ended);
  c.answer->finished(0, result("xyz", "eos"));
  EXPECT_TRUE(c.reply->ended);
  const std::vector<json> events = c.reply->events();
  EXPECT_TRUE(c.reply->done);
  ASSERT_EQ(events.size(), 3U);
  std::string text;
  for (const json& event : events) {
    EXPECT_EQ(event["id"], "the-id");
    EXPECT_EQ(event["object"], "text_completion");
    EXPECT_FALSE(event.contains("usage"));
    text += event["choices"][0]["text"];
  }
  EXPECT_EQ(text, "xyz");
  EXPECT_EQ(events[0]["choices"][0]["finish_reason"], nullptr);
  EXPECT_EQ(events[2]["choices"][0]["finish_reason"], "stop");
}

TEST(CompletionStream, HasTheUsageInALastChunkWithoutChoices) {
  Completion c(request_for({"ab"}, {.choices = 2, .stream = true, .include_usage = true}));
  c.answer->told(1, delta("xyz"));
  c.answer->finished(1, result("xyz"));
  c.answer->told(0, delta("x"));
  c.answer->finished(0, result("x"));
  const std::vector<json> events = c.reply->events();
  for (std::size_t i = 0; i + 1 < events.size(); ++i) EXPECT_EQ(events[i].at("usage"), nullptr);
  EXPECT_EQ(events.back()["choices"], json::array());
  EXPECT_EQ(events.back()["usage"], usage(2, 4, 0));
  EXPECT_EQ(events[0]["choices"][0]["index"], 1);
}

TEST(CompletionStream, EchoesThePromptAheadOfTheFirstText) {
  Completion c(request_for({"ab"}, {.stream = true, .echo = true, .logprobs = 0}));
  Delta first = delta("x");
  first.prompt_logprobs = {token('b', -2)};
  first.logprobs = {token('x', -1)};
  c.answer->told(0, first);
  Delta second = delta("y");
  second.logprobs = {token('y', -1)};
  c.answer->told(0, second);
  c.answer->finished(0, result("xy"));
  const std::vector<json> events = c.reply->events();
  EXPECT_EQ(events[0]["choices"][0]["text"], "abx");
  EXPECT_EQ(events[0]["choices"][0]["logprobs"]["tokens"], json({"a", "b", "x"}));
  EXPECT_EQ(events[1]["choices"][0]["text"], "y");
  EXPECT_EQ(events[1]["choices"][0]["logprobs"]["text_offset"], json({3}));
}

TEST(CompletionStream, TellsOfTokensWithoutTextWhereTheirLogprobsAreAskedFor) {
  Completion c(request_for({"a"}, {.stream = true, .logprobs = 0}));
  Delta half;
  half.new_tokens = 1;
  half.logprobs = {token('\xe2', -1)};
  c.answer->told(0, half);
  ASSERT_EQ(c.reply->events().size(), 1U);
  EXPECT_EQ(c.reply->events()[0]["choices"][0]["logprobs"]["tokens"], json({"bytes:\\xe2"}));
}

TEST(ChatAnswerTest, HasTheShapeOfTheApi) {
  Chat c(request_for({"ab"}, {.logprobs = 1}));
  Result r = result("x", "eos");
  r.logprobs = {token('x', -0.5F, {{'y', -0.25F}})};
  c.answer->finished(0, r);
  const json sent = c.reply->sent();
  EXPECT_EQ(sent["object"], "chat.completion");
  EXPECT_EQ(
      sent["choices"],
      json({{{"index", 0},
             {"message", {{"role", "assistant"}, {"content", "x"}}},
             {"logprobs",
              {{"content",
                {{{"token", "x"},
                  {"logprob", -0.5},
                  {"bytes", {120}},
                  {"top_logprobs", {{{"token", "y"}, {"logprob", -0.25}, {"bytes", {121}}}}}}}}}},
             {"finish_reason", "stop"}}}));
  EXPECT_EQ(sent["usage"]["total_tokens"], 3);
}

TEST(ChatStream, BeginsWithTheRoleAndEndsWithTheReason) {
  Chat c(request_for({"ab"}, {.choices = 2, .stream = true}));
  c.answer->started(0);
  c.answer->told(0, delta("x"));
  c.answer->told(1, delta("y"));  // started without a word
  c.answer->finished(0, result("x", "eos"));
  c.answer->finished(1, result("y", "length"));
  const std::vector<json> events = c.reply->events();
  EXPECT_TRUE(c.reply->done);
  std::vector<json> of[2];
  for (const json& event : events) {
    EXPECT_EQ(event["object"], "chat.completion.chunk");
    const json& choice = event["choices"][0];
    of[choice["index"].get<int>()].push_back(choice);
  }
  for (const std::vector<json>& choices : of) {
    ASSERT_EQ(choices.size(), 3U);
    EXPECT_EQ(choices[0]["delta"], json({{"role", "assistant"}, {"content", ""}}));
    EXPECT_EQ(choices[2]["delta"], json::object());
  }
  EXPECT_EQ(of[0][1]["delta"], json({{"content", "x"}}));
  EXPECT_EQ(of[0][2]["finish_reason"], "stop");
  EXPECT_EQ(of[1][2]["finish_reason"], "length");
}

TEST(FailedAnswer, IsAnErrorWithItsStatusOrAnEventOfAStreamThatBegan) {
  const ApiError error = ApiError::failed("the logits are NaN");
  Completion whole(request_for({"ab"}));
  whole.answer->failed(error);
  EXPECT_EQ(whole.reply->head.status, 500);
  EXPECT_EQ(whole.reply->sent()["error"]["message"], "the logits are NaN");

  Completion early(request_for({"ab"}, {.stream = true}));
  early.answer->accepted();  // with which the status is said
  early.answer->failed(error);
  EXPECT_EQ(early.reply->events().at(0)["error"]["message"], "the logits are NaN");
  EXPECT_TRUE(early.reply->ended);

  Completion late(request_for({"ab"}, {.stream = true}));
  late.answer->told(0, delta("x"));
  late.answer->failed(error);
  EXPECT_EQ(late.reply->events().back()["error"]["message"], "the logits are NaN");
  EXPECT_FALSE(late.reply->done);
  EXPECT_TRUE(late.reply->ended);
}

TEST(ApiErrorTest, WritesWhatClientsOfTheApiRead) {
  const HttpResponse response =
      ApiError(429, "full", {.type = "rate_limit_error", .code = "queue_full"})
          .retry_after(3)
          .response();
  EXPECT_EQ(response.status, 429);
  EXPECT_EQ(json::parse(response.body), json({{"error",
                                               {{"message", "full"},
                                                {"type", "rate_limit_error"},
                                                {"param", nullptr},
                                                {"code", "queue_full"}}}}));
  EXPECT_THAT(response.headers, ElementsAre(testing::Pair("Retry-After", "3")));
  EXPECT_EQ(ApiError::bad_request("`top_k` is wrong").fields().param, "top_k");
  EXPECT_EQ(ApiError::bad_request("something is wrong").fields().param, "");
}

}  // namespace
}  // namespace zi
