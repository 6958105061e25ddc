// Endpoints: which there are, who may use them, and what they answer.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/evp.h>

#include <array>
#include <fstream>

#include "serve/api.h"
#include "serve/request_sink.h"
#include "serve_fixture.h"
#include "temporary_directory.h"

namespace zi {
namespace {

using namespace std::chrono_literals;
using test::byte_model;
using test::FakeReply;
using test::ids_of_text;
using test::json;
using testing::HasSubstr;

std::string sha256_base64(std::string_view text) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> hash{};
  unsigned size = 0;
  EVP_Digest(text.data(), text.size(), hash.data(), &size, EVP_sha256(), nullptr);
  std::array<unsigned char, 2 * EVP_MAX_MD_SIZE> encoded{};
  const int length = EVP_EncodeBlock(encoded.data(), hash.data(), static_cast<int>(size));
  return {encoded.begin(), encoded.begin() + length};
}

class ApiTest : public testing::Test {
 protected:
  void serve(const std::string& key = "") {
    api.emplace(queue, metrics, loading, key);
    PerLink<double> limits;
    api->serve(byte_model({}, folder.path()), limits);
  }
  std::shared_ptr<FakeReply> ask(const std::string& method, const std::string& path,
                                 const std::string& body = "", const std::string& key = "") {
    if (!api) serve();
    HttpRequest request;
    request.method = method;
    request.path = path;
    request.body = body;
    if (!key.empty()) request.headers.emplace_back("authorization", key);
    auto reply = std::make_shared<FakeReply>();
    const HttpAdmission admission = api->admit(request);
    if (admission.refusal) {
      reply->send(*admission.refusal);
    } else {
      api->handle(request, reply);
    }
    return reply;
  }
  std::shared_ptr<FakeReply> post(const std::string& path, const json& body) {
    return ask("POST", path, body.dump());
  }
  /// Runs what waits: each prompt is answered by `text`, and its own tokens by -1, -2, ..
  void run(const std::string& text) {
    for (const Prompt& prompt : queue.take(99, false)) {
      taken.push_back(prompt);
      Result result;
      result.index = prompt.index;
      result.text = text;
      result.token_ids = ids_of_text(text);
      result.finish_reason = "length";
      if (prompt.own.prompt_logprobs) {
        result.prompt_logprobs.emplace();
        for (std::size_t i = 1; i < prompt.ids->size(); ++i) {
          result.prompt_logprobs->push_back({(*prompt.ids)[i], -static_cast<float>(i), {}});
        }
      }
      sink.finished(result);
    }
    sink.ranks({});
    ASSERT_TRUE(answers.flush(5s));
  }
  static int status(const std::shared_ptr<FakeReply>& reply) { return reply->head.status; }
  static std::string param(const std::shared_ptr<FakeReply>& reply) {
    const json value = reply->sent()["error"]["param"];
    return value.is_null() ? "" : value.get<std::string>();
  }

  test::TemporaryDirectory folder;
  AnswerThread answers;
  RequestQueue queue{4, answers};
  Metrics metrics;
  RequestSink sink{queue, answers, metrics};
  LoadingProgress loading;
  std::optional<Api> api;
  std::vector<Prompt> taken;
};

TEST_F(ApiTest, SaysHowFarLoadingIsAndTakesNothingUntilThen) {
  api.emplace(queue, metrics, loading, "");
  loading.all = 200;
  loading.done = 50;
  const auto health = ask("GET", "/health");
  EXPECT_EQ(status(health), 503);
  EXPECT_EQ(health->sent()["status"], "loading");
  EXPECT_EQ(health->sent()["progress"], 0.25);
  for (const auto& [method, path] : std::vector<std::pair<std::string, std::string>>{
           {"GET", "/v1/models"}, {"POST", "/v1/completions"}, {"POST", "/tokenize"}}) {
    const auto reply = ask(method, path, R"({"prompt": "a"})");
    EXPECT_EQ(status(reply), 503) << path;
    EXPECT_EQ(reply->header("Retry-After"), "1");
  }
  EXPECT_EQ(status(ask("GET", "/version")), 200);
  EXPECT_EQ(status(ask("GET", "/metrics")), 200);
  api->serve(byte_model(), {});
  EXPECT_EQ(status(ask("GET", "/health")), 200);
}

TEST_F(ApiTest, IsUnhealthyWhileItEnds) {
  serve();
  api->begin_drain();
  queue.close();
  EXPECT_EQ(status(ask("GET", "/health")), 503);
  EXPECT_EQ(status(post("/v1/completions", {{"prompt", "a"}})), 503);
}

TEST_F(ApiTest, KnowsItsPathsAndTheirMethods) {
  EXPECT_EQ(status(ask("GET", "/v2")), 404);
  EXPECT_EQ(status(ask("POST", "/v1/completions/")), 404);
  const auto reply = ask("GET", "/v1/completions");
  EXPECT_EQ(status(reply), 405);
  EXPECT_EQ(reply->header("Allow"), "POST");
  EXPECT_EQ(status(ask("DELETE", "/health")), 405);
  EXPECT_EQ(reply->sent()["error"]["type"], "invalid_request_error");
}

TEST_F(ApiTest, HasAPageOfWhichThePolicyNamesStyleAndScript) {
  const auto page = ask("GET", "/");
  EXPECT_EQ(status(page), 200);
  EXPECT_EQ(page->head.content_type, "text/html; charset=utf-8");
  const std::string& html = page->head.body;
  EXPECT_TRUE(html.starts_with("<!doctype html>"));
  const std::string policy = page->header("Content-Security-Policy");
  EXPECT_THAT(policy, HasSubstr("default-src 'none'"));
  for (const auto& [begin, end, source] :
       {std::array{"<style>", "</style>", "style-src"},
        std::array{"<script type=\"module\">", "</script>", "script-src"}}) {
    const std::size_t from = html.find(begin) + std::string(begin).size();
    const std::string_view text = std::string_view(html).substr(from, html.find(end) - from);
    EXPECT_THAT(policy, HasSubstr(std::string(source) + " 'sha256-" + sha256_base64(text) + "'"));
  }
}

TEST_F(ApiTest, AsksForTheKeyEverywhereButForHealthAndThePage) {
  serve("secret");
  EXPECT_EQ(status(ask("GET", "/health")), 200);
  EXPECT_EQ(status(ask("GET", "/")), 200);
  for (const std::string key :
       {"", "secret", "Bearer ", "Bearer secre", "Bearer secrets", "Bearer Secret", "Basic secret",
        "Bearer secretsecret", "Bearersecret", "Bearer", "Bearer   "}) {
    for (const std::string path : {"/v1/models", "/metrics", "/version", "/nowhere"}) {
      const auto reply = ask("GET", path, "", key);
      EXPECT_EQ(status(reply), 401) << key << path;
      EXPECT_EQ(reply->header("WWW-Authenticate"), "Bearer");
      EXPECT_EQ(reply->sent()["error"]["code"], "invalid_api_key");
    }
  }
  for (const std::string key : {"Bearer secret", "bearer secret", "BEARER   secret"}) {
    EXPECT_EQ(status(ask("GET", "/v1/models", "", key)), 200) << key;
  }
}

TEST_F(ApiTest, ReadsBodiesForItsOwnEndpointsAloneAndMakesNobodyWaitWhoOnlyLooks) {
  serve("secret");
  const auto admission = [&](const std::string& method, const std::string& path) {
    HttpRequest head;
    head.method = method;
    head.path = path;
    head.headers.emplace_back("authorization", "Bearer secret");
    return api->admit(head);
  };
  for (const std::string path :
       {"/", "/health", "/version", "/metrics", "/v1/models", "/v1/models/bytes", "/nowhere"}) {
    EXPECT_TRUE(admission("GET", path).quick) << path;
    EXPECT_LT(admission("GET", path).max_body, 1U << 20) << path;
  }
  for (const std::string path : {"/v1/completions", "/v1/chat/completions", "/tokenize"}) {
    EXPECT_FALSE(admission("POST", path).quick) << path;
    EXPECT_GT(admission("POST", path).max_body, std::size_t{1} << 40) << path;
  }
  for (const std::string path : {"/", "/health", "/nowhere"}) {  // the first two need no key
    EXPECT_LT(admission("POST", path).max_body, 1U << 20) << path;
  }
  EXPECT_FALSE(admission("GET", "/tokenizer_info").quick) << "reads files";
}

TEST_F(ApiTest, ListsItsModel) {
  const json list = ask("GET", "/v1/models")->sent();
  EXPECT_EQ(list["object"], "list");
  ASSERT_EQ(list["data"].size(), 1U);
  EXPECT_EQ(list["data"][0]["id"], "bytes");
  EXPECT_EQ(list["data"][0]["max_model_len"], 64);
  EXPECT_EQ(ask("GET", "/v1/models/bytes")->sent(), list["data"][0]);
  EXPECT_EQ(status(ask("GET", "/v1/models/other")), 404);
  EXPECT_EQ(status(ask("POST", "/v1/models/bytes")), 405);
}

TEST_F(ApiTest, BeginsAStreamWhenTheQueueTakesItAndRefusesItWithAStatus) {
  const json body = {{"prompt", {"a", "b", "c"}}, {"stream", true}};
  const auto taken_one = post("/v1/completions", body);
  EXPECT_TRUE(taken_one->streamed) << "its prompts wait";
  EXPECT_EQ(taken_one->body, "");
  const auto full = post("/v1/completions", body);
  EXPECT_FALSE(full->streamed);
  EXPECT_EQ(status(full), 429);
}

TEST_F(ApiTest, AnswersACompletionOnceItsPromptsAreDone) {
  const auto reply = post("/v1/completions", {{"prompt", {"a", "b"}}, {"max_tokens", 3}});
  EXPECT_EQ(reply->answers, 0);
  EXPECT_EQ(queue.waiting(), 2U);
  run("xyz");
  EXPECT_EQ(reply->sent()["choices"][1]["text"], "xyz");
  EXPECT_EQ(reply->sent()["usage"]["completion_tokens"], 6);
  EXPECT_EQ(taken.at(0).own.max_new_tokens, 3);
}

TEST_F(ApiTest, AnswersAChat) {
  std::ofstream(folder.path() / "chat_template.jinja") << "{{ messages[0].content }}";
  const auto reply =
      post("/v1/chat/completions", {{"messages", {{{"role", "user"}, {"content", "hi"}}}}});
  run("there");
  EXPECT_EQ(reply->sent()["choices"][0]["message"]["content"], "there");
  EXPECT_EQ(taken.at(0).ids, ids_of_text("hi"));
}

TEST_F(ApiTest, SaysWhenTheQueueIsFull) {
  post("/v1/completions", {{"prompt", {"a", "b", "c"}}});
  const auto reply = post("/v1/completions", {{"prompt", {"a", "b"}}});
  EXPECT_EQ(status(reply), 429);
  EXPECT_FALSE(reply->header("Retry-After").empty());
  EXPECT_EQ(reply->sent()["error"]["type"], "rate_limit_error");
  EXPECT_EQ(status(post("/v1/completions", {{"prompt", "a"}, {"n", 5}})), 400);
}

TEST_F(ApiTest, AClientThatLeavesCancelsItsRequest) {
  const auto reply = post("/v1/completions", {{"prompt", "a"}});
  ASSERT_EQ(queue.take(1, false).size(), 1U);
  reply->leave();
  EXPECT_THAT(queue.cancelled(), testing::ElementsAre(0));
  EXPECT_EQ(queue.open(), 0U);
}

TEST_F(ApiTest, TokenizesTextsAndMessages) {
  const json tokens = post("/tokenize", {{"prompt", "ab"}})->sent();
  EXPECT_EQ(
      tokens,
      json({{"count", 2}, {"max_model_len", 64}, {"tokens", {97, 98}}, {"token_strs", nullptr}}));
  EXPECT_EQ(
      post("/tokenize", {{"prompt", "ab"}, {"return_token_strs", true}})->sent()["token_strs"],
      json({"a", "b"}));
  std::ofstream(folder.path() / "chat_template.jinja") << "<{{ messages[0].content }}>";
  EXPECT_EQ(
      post("/tokenize", {{"messages", {{{"role", "user"}, {"content", "a"}}}}})->sent()["tokens"],
      json({60, 97, 62}));
  EXPECT_EQ(post("/detokenize", {{"tokens", {97, 98}}})->sent(), json({{"prompt", "ab"}}));
  EXPECT_EQ(param(post("/tokenize", {{"prompt", 5}})), "prompt");
  EXPECT_EQ(param(post("/tokenize", json::object())), "prompt");
  EXPECT_EQ(param(post("/tokenize", {{"messages", 5}})), "messages");
  EXPECT_EQ(param(post("/detokenize", {{"tokens", "a"}})), "tokens");
  EXPECT_EQ(param(post("/detokenize", {{"tokens", {-1}}})), "tokens");
}

TEST_F(ApiTest, TokenizesForItsOwnModelAloneAndKnowsItsIds) {
  EXPECT_EQ(status(post("/tokenize", {{"prompt", "a"}, {"model", "other"}})), 404);
  EXPECT_EQ(status(post("/detokenize", {{"tokens", {97}}, {"model", "other"}})), 404);
  EXPECT_EQ(status(post("/detokenize", {{"tokens", {97}}, {"model", "bytes"}})), 200);
  const auto beyond = post("/detokenize", {{"tokens", {97, 256}}});
  EXPECT_EQ(status(beyond), 400);
  EXPECT_EQ(param(beyond), "tokens");
}

TEST_F(ApiTest, GivesWhatTheCheckpointSaysOfItsTokenizer) {
  std::ofstream(folder.path() / "tokenizer_config.json")
      << R"({"tokenizer_class": "X", "eos_token": {"content": "</s>"}})";
  std::ofstream(folder.path() / "chat_template.jinja") << "template";
  const json info = ask("GET", "/tokenizer_info")->sent();
  EXPECT_EQ(info["tokenizer_class"], "X");
  EXPECT_EQ(info["eos_token"], "</s>") << "as a text";
  EXPECT_EQ(info["chat_template"], "template");
}

TEST_F(ApiTest, AnswersListsOfTextsAsTheBloomServerDoes) {
  const auto reply = post("/generate/", {{"text", {"ab", "c"}}, {"max_new_tokens", 3}});
  run("xyz");
  const json sent = reply->sent();
  EXPECT_EQ(sent["text"], json({"abxyz", "cxyz"}));
  EXPECT_EQ(sent["num_generated_tokens"], json({3, 3}));
  EXPECT_EQ(sent["query_id"], 0);
  EXPECT_THAT(sent["total_time_taken"].get<std::string>(), HasSubstr(" secs"));
  EXPECT_EQ(taken.at(0).own.temperature, 0.0F) << "greedy unless do_sample says otherwise";

  const auto sampled = post("/generate/", {{"text", json::array({"ab"})},
                                           {"do_sample", true},
                                           {"min_length", 5},
                                           {"remove_input_from_output", true}});
  run("xyz");
  EXPECT_EQ(sampled->sent()["text"], json::array({"xyz"}));
  EXPECT_EQ(sampled->sent()["query_id"], 1);
  EXPECT_EQ(taken.back().own.temperature, 1.0F);
  EXPECT_EQ(taken.back().own.top_k, 50);
  EXPECT_EQ(taken.back().own.min_new_tokens, 3) << "the length counts the prompt";
  EXPECT_EQ(taken.back().own.max_new_tokens, 62) << "100, or as many as fit";

  EXPECT_EQ(post("/tokenize/", {{"text", {"ab", "c"}}})->sent()["token_ids"],
            json({json({97, 98}), json::array({99})}));
  EXPECT_EQ(ask("GET", "/query_id/")->sent(),
            json({{"generate_query_id", 2}, {"tokenize_query_id", 1}, {"forward_query_id", 0}}));
  for (const json& text : {json("ab"), json::array(), json({1}), json()}) {
    EXPECT_EQ(param(post("/generate/", {{"text", text}})), "text") << text;
  }
  EXPECT_EQ(param(post("/generate/", {{"text", json::array({"a"})}, {"do_sample", 1}})),
            "do_sample");
}

TEST_F(ApiTest, AResponseWithoutATokenHasNoLoss) {
  const auto reply =
      post("/forward/", {{"conditioning_text", {"a", "b"}}, {"response", {"c", ""}}});
  EXPECT_EQ(status(reply), 400);
  EXPECT_EQ(param(reply), "response");
}

TEST_F(ApiTest, GivesTheMeanLossOfResponses) {
  const auto reply =
      post("/forward/", {{"conditioning_text", {"ab", "a"}}, {"response", {"cd", "b"}}});
  run("");
  // Tokens 2 and 3 of the first prompt, and 1 of the second.
  EXPECT_DOUBLE_EQ(reply->sent()["nll"].get<double>(), (2.0 + 3.0 + 1.0) / 3);
  EXPECT_EQ(taken.at(0).own.max_new_tokens, 0);
  EXPECT_EQ(param(post("/forward/",
                       {{"conditioning_text", json::array({"a"})}, {"response", {"b", "c"}}})),
            "response");
  EXPECT_EQ(param(post("/forward/", {{"response", json::array({"b"})}})), "conditioning_text");
}

}  // namespace
}  // namespace zi
