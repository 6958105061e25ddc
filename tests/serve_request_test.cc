// Requests for new text: every member, and what is said of bad ones.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "serve/api_error.h"
#include "serve/chat_completion_request.h"
#include "serve/completion_request.h"
#include "serve_fixture.h"
#include "temporary_directory.h"

namespace zi {
namespace {

using test::byte_model;
using test::ids_of_text;
using test::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;
using testing::StartsWith;

GenerationRequest completion(const json& body, RequestDefaults defaults = {}) {
  UnknownFields unknown;
  return read_completion_request(body.dump(), *byte_model(defaults), unknown);
}

/// A completion of `a` with one more member.
json with(const char* key, json value) {
  json body = {{"prompt", "a"}};
  body[key] = std::move(value);
  return body;
}

OwnSettings settings(const char* key, json value) {
  return completion(with(key, std::move(value))).prompts.at(0).own;
}

/// What the API answers with.
struct Refusal {
  int status = 0;
  std::string param;
  std::string code;
  std::string message;
};

template <typename Read>
Refusal refusal_of(Read read) {
  try {
    read();
  } catch (const ApiError& error) {
    return {error.status(), error.fields().param, error.fields().code, error.what()};
  }
  return {};
}

Refusal refusal(const json& body) {
  return refusal_of([&] { completion(body); });
}

/// 400 naming the member.
void expect_bad(const char* key, const json& value) {
  const Refusal said = refusal(with(key, value));
  EXPECT_EQ(said.status, 400) << key << " " << value;
  EXPECT_EQ(said.param, key) << value << ": " << said.message;
}

TEST(CompletionRequest, TakesAPromptAsTextTextsIdsAndListsOfIds) {
  const auto ids = [](json prompt) {
    std::vector<std::vector<std::int32_t>> all;
    for (const Prompt& p : completion({{"prompt", std::move(prompt)}}).prompts) {
      EXPECT_FALSE(p.text);
      all.push_back(*p.ids);
    }
    return all;
  };
  EXPECT_THAT(ids("ab"), ElementsAre(ElementsAre(97, 98)));
  EXPECT_THAT(ids({"ab", "c"}), ElementsAre(ElementsAre(97, 98), ElementsAre(99)));
  EXPECT_THAT(ids({5, 6, 255}), ElementsAre(ElementsAre(5, 6, 255)));
  EXPECT_THAT(ids({{5, 6}, {7}}), ElementsAre(ElementsAre(5, 6), ElementsAre(7)));
}

TEST(CompletionRequest, NamesWhatIsNoPrompt) {
  for (const json& prompt :
       {json(17), json(true), json::object(), json::array(), json({"a", 5}), json({5, "a"}),
        json({{5}, "a"}), json({{5}, 6}), json({1.5}), json({-1}), json({256}), json({{}}),
        json({1LL << 40}), json(""), json({"a", ""}), json::array({nullptr}),
        json::array({json::array({json::object()})})}) {
    const Refusal said = refusal({{"prompt", prompt}});
    EXPECT_EQ(said.status, 400) << prompt;
    EXPECT_EQ(said.param, "prompt") << prompt << ": " << said.message;
  }
  EXPECT_EQ(refusal(json::object()).param, "prompt");
}

TEST(CompletionRequest, SaysHowManyTokensDoNotFit) {
  const Refusal said = refusal({{"prompt", std::string(60, 'a')}, {"max_tokens", 5}});
  EXPECT_EQ(said.status, 400);
  EXPECT_EQ(said.code, "context_length_exceeded");
  EXPECT_THAT(said.message, HasSubstr("maximum context length is 64 tokens"));
  EXPECT_THAT(said.message, HasSubstr("you requested 65 tokens (60 in the prompt, 5 new ones)"));
  EXPECT_THAT(refusal({{"prompt", std::string(1'100'000, 'a')}, {"max_tokens", 5}}).message,
              HasSubstr("the prompt has no room beside 5 new tokens"));
  EXPECT_EQ(refusal(with("max_tokens", 100)).code, "context_length_exceeded");
  EXPECT_THAT(refusal({{"prompt", std::vector<int>(60, 97)}, {"max_tokens", 5}}).message,
              HasSubstr("you requested 65 tokens (60 in the prompt, 5 new ones)"));
  EXPECT_EQ(refusal({{"prompt", std::string(1000, 'a')}}).code, "context_length_exceeded");
  EXPECT_EQ(completion({{"prompt", std::string(60, 'a')}}).prompts.at(0).own.max_new_tokens, 4)
      << "where nothing is said, as many as fit";
  EXPECT_EQ(refusal({{"prompt", std::string(60, 'a')}, {"max_tokens", 4}}).status, 0);
}

TEST(CompletionRequest, ReadsEverySetting) {
  EXPECT_EQ(settings("max_tokens", 7).max_new_tokens, 7);
  EXPECT_EQ(settings("max_tokens", 0).max_new_tokens, 0);
  EXPECT_EQ(settings("min_tokens", 3).min_new_tokens, 3);
  EXPECT_EQ(settings("temperature", 0.5).temperature, 0.5F);
  EXPECT_EQ(settings("temperature", 0).temperature, 0.0F);
  EXPECT_EQ(settings("top_p", 0.9).top_p, 0.9F);
  EXPECT_EQ(settings("top_k", 40).top_k, 40);
  EXPECT_EQ(settings("top_k", -1).top_k, 0);
  EXPECT_EQ(settings("min_p", 0.1).min_p, 0.1F);
  EXPECT_EQ(settings("presence_penalty", -1.5).presence_penalty, -1.5F);
  EXPECT_EQ(settings("frequency_penalty", 2).frequency_penalty, 2.0F);
  EXPECT_EQ(settings("repetition_penalty", 1.25).repetition_penalty, 1.25F);
  EXPECT_THAT(settings("logit_bias", {{"7", -100}, {"9", 2.5}}).logit_bias,
              testing::UnorderedElementsAre(Pair(7, -100), Pair(9, 2.5)));
  EXPECT_EQ(settings("ignore_eos", true).ignore_eos, true);
  EXPECT_THAT(*settings("stop", "x").stop, ElementsAre("x"));
  EXPECT_THAT(*settings("stop", {"x", "yz"}).stop, ElementsAre("x", "yz"));
  EXPECT_EQ(settings("seed", 17).seed, 17U);
  EXPECT_EQ(settings("logprobs", 3).logprobs, 3);
  EXPECT_EQ(settings("logprobs", 0).logprobs, 0);
  EXPECT_EQ(settings("prompt_logprobs", 2).prompt_logprobs, 2);
}

TEST(CompletionRequest, HasTheApisDefaultsUnlessTheServerHasItsOwn) {
  const OwnSettings own = completion({{"prompt", "a"}}).prompts.at(0).own;
  EXPECT_EQ(own.max_new_tokens, 16);
  EXPECT_EQ(own.temperature, 1.0F);
  EXPECT_FALSE(own.top_p || own.top_k || own.stop || own.logprobs || own.prompt_logprobs);
  const OwnSettings given =
      completion({{"prompt", "a"}}, {.max_new_tokens = 9, .temperature = true, .seed = 5})
          .prompts.at(0)
          .own;
  EXPECT_EQ(given.max_new_tokens, 9);
  EXPECT_FALSE(given.temperature) << "the job's counts";
  EXPECT_EQ(given.seed, 5U);
}

TEST(CompletionRequest, NullMeansLeftOut) {
  json body = {{"prompt", "a"}};
  for (const char* key : {"model",
                          "max_tokens",
                          "min_tokens",
                          "temperature",
                          "top_p",
                          "top_k",
                          "min_p",
                          "n",
                          "best_of",
                          "stop",
                          "seed",
                          "stream",
                          "stream_options",
                          "echo",
                          "logprobs",
                          "logit_bias",
                          "presence_penalty",
                          "frequency_penalty",
                          "repetition_penalty",
                          "ignore_eos",
                          "suffix",
                          "response_format",
                          "prompt_logprobs",
                          "user"}) {
    body[key] = nullptr;
  }
  const GenerationRequest request = completion(body);
  EXPECT_EQ(request.prompts.size(), 1U);
  EXPECT_EQ(request.prompts[0].own.max_new_tokens, 16);
  EXPECT_FALSE(request.shape.stream || request.shape.echo);
}

TEST(CompletionRequest, NamesEachMemberThatIsWrong) {
  const json wrong_everywhere[] = {"x", json::array({1}), json::object({{"a", 1}})};
  for (const char* key : {"max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "n",
                          "best_of", "seed", "logprobs", "presence_penalty", "frequency_penalty",
                          "repetition_penalty", "prompt_logprobs"}) {
    for (const json& value : wrong_everywhere) expect_bad(key, value);
    expect_bad(key, true);
  }
  for (const char* key : {"stream", "echo", "ignore_eos", "return_tokens_as_token_ids"}) {
    for (const json& value : wrong_everywhere) expect_bad(key, value);
    expect_bad(key, 1);
  }
  for (const char* key : {"max_tokens", "min_tokens", "n", "logprobs"}) {
    expect_bad(key, -1);
    expect_bad(key, 1.5);
    expect_bad(key, std::uint64_t{1} << 63);
  }
  expect_bad("n", 0);
  expect_bad("n", 1000000);
  expect_bad("logprobs", 101);
  expect_bad("temperature", -0.5);
  expect_bad("top_p", 0);
  expect_bad("top_p", 1.1);
  expect_bad("min_p", -0.1);
  expect_bad("min_p", 1.1);
  expect_bad("repetition_penalty", 0);
  expect_bad("presence_penalty", 1e9);
  expect_bad("top_k", -2);
  expect_bad("stop", "");
  expect_bad("stop", {"a", 1});
  expect_bad("stop", 1);
  expect_bad("logit_bias", {{"x", 1}});
  expect_bad("logit_bias", {{"1", 101}});
  expect_bad("logit_bias", {{"1", nullptr}});
  expect_bad("logit_bias", 3);
  expect_bad("stream_options", {{"include_usage", true}});  // without a stream
  expect_bad("stream_options", 1);
}

TEST(CompletionRequest, RefusesByNameWhatItWouldHaveToLeaveOut) {
  expect_bad("suffix", "the end");
  expect_bad("best_of", 2);
  expect_bad("use_beam_search", true);
  expect_bad("stop_token_ids", {5});
  expect_bad("guided_json", {{"type", "object"}});
  expect_bad("guided_regex", "a+");
  expect_bad("structured_outputs", {{"regex", "a+"}});
  expect_bad("response_format", {{"type", "json_object"}});
  expect_bad("response_format", "text");
  EXPECT_EQ(refusal(with("response_format", {{"type", "text"}})).status, 0);
  EXPECT_EQ(refusal(with("suffix", "")).status, 0);
  EXPECT_EQ(refusal(with("use_beam_search", false)).status, 0);
  EXPECT_EQ(refusal({{"prompt", "a"}, {"n", 3}, {"best_of", 3}}).status, 0);
  EXPECT_EQ(refusal({{"prompt", "a"}, {"min_tokens", 6}, {"max_tokens", 5}}).param, "min_tokens");
}

TEST(CompletionRequest, KnowsItsModelAlone) {
  EXPECT_EQ(refusal(with("model", "bytes")).status, 0);
  const Refusal said = refusal(with("model", "gpt"));
  EXPECT_EQ(said.status, 404);
  EXPECT_EQ(said.param, "model");
  EXPECT_EQ(said.code, "model_not_found");
  expect_bad("model", 5);
}

TEST(CompletionRequest, HasEachPromptOnceHoweverManyChoices) {
  const GenerationRequest request =
      completion({{"prompt", {"ab", "c"}}, {"n", 3}, {"seed", 7}, {"stream", true}});
  ASSERT_EQ(request.prompts.size(), 2U);
  EXPECT_EQ(request.shape.choices, 3U);
  EXPECT_THAT(request.prompt_texts, ElementsAre("ab", "c"));
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(*request.prompts[i].ids, ids_of_text(i == 0 ? "ab" : "c"));
    EXPECT_EQ(request.prompts[i].own.seed, 7U);
    EXPECT_TRUE(request.prompts[i].stream);
  }
  std::set<std::uint64_t> seeds;
  for (int i = 0; i < 3; ++i) seeds.insert(*completion({{"prompt", "a"}}).prompts[0].own.seed);
  EXPECT_EQ(seeds.size(), 3U) << "without a seed each request has another one";
}

TEST(CompletionRequest, OfMorePromptsAndChoicesThanMayWaitIsRefusedBeforeTheyAreRead) {
  const RequestDefaults few{.most_prompts = 6};
  EXPECT_EQ(completion({{"prompt", {"ab", "c"}}, {"n", 3}}, few).prompts.size(), 2U);
  const json too_long = std::string(1000, 'a');  // which would be refused for that
  for (const json& body :
       {json({{"prompt", {too_long, too_long}}, {"n", 4}}), json({{"prompt", too_long}, {"n", 7}}),
        json({{"prompt", std::vector<json>(7, too_long)}})}) {
    const Refusal said = refusal_of([&] { completion(body, few); });
    EXPECT_EQ(said.code, "too_many_prompts") << said.message;
    EXPECT_THAT(said.message, HasSubstr("up to 6 together (--max-queue)"));
  }
}

TEST(CompletionRequest, AsksForNoMoreLogprobsThanOneAnswerMayHave) {
  const auto model = byte_model({}, "/nonexistent", 100'000);
  const auto read = [&](json body) {
    UnknownFields unknown;
    body["prompt"] = std::string(50'000, 'a');
    return refusal_of([&] { read_completion_request(body.dump(), *model, unknown); });
  };
  EXPECT_EQ(read({{"max_tokens", 9}, {"echo", true}, {"logprobs", 20}}).status, 0);
  EXPECT_EQ(read({{"max_tokens", 9}, {"n", 100}, {"logprobs", 20}}).status, 0);
  const Refusal said = read({{"max_tokens", 9}, {"echo", true}, {"logprobs", 20}, {"n", 5}});
  EXPECT_EQ(said.status, 400);
  EXPECT_EQ(said.param, "logprobs");
  EXPECT_THAT(said.message, HasSubstr("could have 5250945 log-probabilities"));
  EXPECT_EQ(read({{"max_tokens", 40'000}, {"n", 6}, {"logprobs", 20}}).status, 400);
  EXPECT_EQ(read({{"max_tokens", 9}, {"echo", true}, {"logprobs", 20}, {"n", 5}, {"stream", true}})
                .status,
            0)
      << "a stream keeps none of them";
}

TEST(CompletionRequest, OfAStreamHasNoPromptLogprobsBesideItsEcho) {
  const Refusal said = refusal({{"prompt", "a"}, {"prompt_logprobs", 1}, {"stream", true}});
  EXPECT_EQ(said.status, 400);
  EXPECT_EQ(said.param, "prompt_logprobs");
}

TEST(CompletionRequest, BiasesIdsOfTheModelAlone) {
  EXPECT_EQ(refusal(with("logit_bias", {{"255", 1}})).status, 0);
  const Refusal said = refusal(with("logit_bias", {{"256", 1}}));
  EXPECT_EQ(said.status, 400);
  EXPECT_THAT(said.message, HasSubstr("`logit_bias`: token id 256 is out of range"));
  EXPECT_EQ(said.param, "logit_bias");
  EXPECT_EQ(refusal({{"prompt", {256}}}).param, "prompt");
}

TEST(CompletionRequest, NamesWhatLeavesNoRoom) {
  EXPECT_EQ(refusal(with("max_tokens", 64)).param, "max_tokens");
  EXPECT_EQ(refusal(with("max_tokens", 63)).status, 0);
  EXPECT_EQ(refusal({{"prompt", std::string(60, 'a')}, {"max_tokens", 20}}).param, "prompt");
}

TEST(CompletionRequest, AnEchoAsksForTheLogprobsOfThePrompt) {
  const GenerationRequest request =
      completion({{"prompt", "ab"}, {"echo", true}, {"logprobs", 2}, {"max_tokens", 0}});
  EXPECT_TRUE(request.shape.echo);
  EXPECT_EQ(request.prompts[0].own.prompt_logprobs, 2);
  EXPECT_FALSE(request.shape.prompt_logprobs) << "they are in `logprobs`";
  const GenerationRequest both =
      completion({{"prompt", "ab"}, {"echo", true}, {"logprobs", 2}, {"prompt_logprobs", 5}});
  EXPECT_EQ(both.prompts[0].own.prompt_logprobs, 5);
  EXPECT_EQ(both.shape.prompt_logprobs, 5);
  EXPECT_FALSE(completion({{"prompt", "ab"}, {"echo", true}}).prompts[0].own.prompt_logprobs);
}

TEST(CompletionRequest, RefusesBodiesThatAreNoJsonObject) {
  const std::string deep = "{\"prompt\":" + std::string(1000, '[') + std::string(1000, ']') + "}";
  for (const std::string& body :
       {std::string(), std::string("{"), std::string("[]"), std::string("null"), std::string("5"),
        std::string("{\"prompt\":\"a\"} x"), std::string("{\"prompt\":\"\xff\"}"),
        std::string("{\"prompt\":\"a\",\"prompt\":\"b\"}"), std::string("{\"n\":NaN}"), deep}) {
    UnknownFields unknown;
    const Refusal said = refusal_of([&] { read_completion_request(body, *byte_model(), unknown); });
    EXPECT_EQ(said.status, 400) << body.substr(0, 40);
    EXPECT_THAT(said.message, StartsWith("the body cannot be used: ")) << body.substr(0, 40);
  }
}

class ChatCompletionRequest : public testing::Test {
 protected:
  /// A template that shows what it gets.
  ChatCompletionRequest() {
    std::ofstream(folder_.path() / "chat_template.jinja")
        << "{% for m in messages %}{{ m.role }}:{{ m.content }}"
           "{% for c in m.tool_calls or [] %}({{ c.function.arguments.x }}){% endfor %};"
           "{% endfor %}{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
           "{{ suffix or '' }}";
  }
  GenerationRequest read(const json& body) const {
    UnknownFields unknown;
    return read_chat_completion_request(body.dump(), *byte_model({}, folder_.path(), 256), unknown);
  }
  Refusal refusal(const json& body) const {
    return refusal_of([&] { read(body); });
  }
  static json user(const char* key = nullptr, json value = {}) {
    json body = {{"messages", {{{"role", "user"}, {"content", "hi"}}}}};
    if (key != nullptr) body[key] = std::move(value);
    return body;
  }

  test::TemporaryDirectory folder_;
};

TEST_F(ChatCompletionRequest, RendersMessagesByTheCheckpointsTemplate) {
  const GenerationRequest request = read(user());
  EXPECT_THAT(request.prompt_texts, ElementsAre("user:hi;"));
  EXPECT_EQ(*request.prompts.at(0).ids, ids_of_text("user:hi;"));
  EXPECT_EQ(request.prompts[0].own.max_new_tokens, kAsManyAsFit);
  EXPECT_EQ(request.prompts[0].own.temperature, 1.0F);
  EXPECT_THAT(request.shape.id, StartsWith("chatcmpl-"));
}

TEST_F(ChatCompletionRequest, JoinsTextPartsAndReadsTheArgumentsOfCalls) {
  const json parts = {{{"type", "text"}, {"text", "a"}}, {{"type", "text"}, {"text", "b"}}};
  const json call = {{"type", "function"},
                     {"function", {{"name", "f"}, {"arguments", "{\"x\": 5}"}}}};
  const GenerationRequest request =
      read({{"messages",
             {{{"role", "user"}, {"content", parts}},
              {{"role", "assistant"}, {"content", ""}, {"tool_calls", {call}}}}}});
  EXPECT_THAT(request.prompt_texts, ElementsAre("user:a\nb;assistant:(5);"));
}

TEST_F(ChatCompletionRequest, ShowsToolsUnlessTheyAreNotToBeChosen) {
  const json tools = {{{"type", "function"}, {"function", {{"name", "f"}}}}};
  json body = user("tools", tools);
  EXPECT_THAT(read(body).prompt_texts, ElementsAre("user:hi;[f]"));
  body["tool_choice"] = "auto";
  EXPECT_THAT(read(body).prompt_texts, ElementsAre("user:hi;[f]"));
  body["tool_choice"] = "none";
  EXPECT_THAT(read(body).prompt_texts, ElementsAre("user:hi;"));
  for (const json& forced :
       {json("required"), json({{"type", "function"}, {"function", {{"name", "f"}}}})}) {
    body["tool_choice"] = forced;
    EXPECT_EQ(refusal(body).param, "tool_choice");
  }
}

TEST_F(ChatCompletionRequest, HandsArgumentsOnToTheTemplate) {
  EXPECT_THAT(read(user("chat_template_kwargs", {{"suffix", "!"}})).prompt_texts,
              ElementsAre("user:hi;!"));
}

TEST_F(ChatCompletionRequest, TakesBothNamesOfTheMostTokens) {
  EXPECT_EQ(read(user("max_tokens", 5)).prompts[0].own.max_new_tokens, 5);
  EXPECT_EQ(read(user("max_completion_tokens", 6)).prompts[0].own.max_new_tokens, 6);
  json both = user("max_tokens", 5);
  both["max_completion_tokens"] = 6;
  EXPECT_EQ(read(both).prompts[0].own.max_new_tokens, 6) << "max_tokens is the deprecated one";
  EXPECT_EQ(refusal(user("max_tokens", 0)).param, "max_tokens");
  EXPECT_EQ(refusal(user("max_completion_tokens", "x")).param, "max_completion_tokens");
}

TEST_F(ChatCompletionRequest, ReadsLogprobs) {
  EXPECT_FALSE(read(user("logprobs", false)).shape.logprobs);
  EXPECT_EQ(read(user("logprobs", true)).shape.logprobs, 0);
  json body = user("logprobs", true);
  body["top_logprobs"] = 3;
  EXPECT_EQ(read(body).prompts[0].own.logprobs, 3);
  body["top_logprobs"] = 21;
  EXPECT_EQ(refusal(body).param, "top_logprobs");
  EXPECT_EQ(refusal(user("top_logprobs", 3)).param, "top_logprobs");
  EXPECT_EQ(refusal(user("logprobs", 5)).param, "logprobs");
}

TEST_F(ChatCompletionRequest, NamesWhatIsWrongWithMessages) {
  EXPECT_EQ(refusal(json::object()).param, "messages");
  for (const json& messages :
       {json::array(), json("hi"), json({"hi"}), json({{{"content", "hi"}}}),
        json({{{"role", 5}, {"content", "hi"}}}), json({{{"role", "user"}, {"content", 5}}}),
        json({{{"role", "user"}}}), json({{{"role", "user"}, {"content", nullptr}}}),
        json({{{"role", "user"}, {"content", {{"text", "hi"}}}}}),
        json({{{"role", "user"},
               {"content", {{{"type", "image_url"}, {"image_url", {{"url", "x"}}}}}}}})}) {
    const Refusal said = refusal({{"messages", messages}});
    EXPECT_EQ(said.status, 400) << messages;
    EXPECT_EQ(said.param, "messages") << messages << ": " << said.message;
  }
  const json image = {{"type", "image_url"}, {"image_url", {{"url", "x"}}}};
  EXPECT_EQ(refusal({{"messages", {{{"role", "user"}, {"content", {image}}}}}}).message,
            "`messages`[0]: a part of `content` is of the type `image_url`; only text is "
            "supported");
  EXPECT_EQ(refusal(user("add_generation_prompt", false)).param, "add_generation_prompt");
  EXPECT_EQ(refusal(user("tools", "f")).param, "tools");
  EXPECT_EQ(refusal(user("chat_template_kwargs", 5)).param, "chat_template_kwargs");
  const json much = {{"messages", {{{"role", "user"}, {"content", std::string(300, 'a')}}}}};
  EXPECT_EQ(refusal(much).code, "context_length_exceeded");
}

TEST_F(ChatCompletionRequest, SaysThatThereIsNoTemplate) {
  std::filesystem::remove(folder_.path() / "chat_template.jinja");
  const Refusal said = refusal(user());
  EXPECT_EQ(said.status, 400);
  EXPECT_EQ(said.code, "no_chat_template");
}

TEST(UnknownFieldsTest, EachIsNamedOnceInTheLog) {
  UnknownFields unknown;
  testing::internal::CaptureStderr();
  for (int i = 0; i < 3; ++i) {
    read_completion_request(R"({"prompt": "a", "frobnicate": 1})", *byte_model(), unknown);
  }
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_THAT(log, HasSubstr("frobnicate"));
  EXPECT_EQ(log.find("frobnicate"), log.rfind("frobnicate"));
}

}  // namespace
}  // namespace zi
