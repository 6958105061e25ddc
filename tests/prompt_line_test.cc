#include "text/prompt_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "zero_infer/error.h"

namespace zi {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string refusal(std::string_view line) {
  try {
    parse_prompt_line(line);
  } catch (const PromptError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(PromptLine, HoldsTextOrIds) {
  const Prompt text = parse_prompt_line(R"({"prompt": "aé\n", "id": "x", "other": [1]})");
  EXPECT_EQ(text.text, "aé\n");
  EXPECT_FALSE(text.ids);
  EXPECT_EQ(text.id, R"("x")");
  EXPECT_FALSE(text.own.max_new_tokens);
  const Prompt ids =
      parse_prompt_line(R"({"prompt_ids": [0, 2147483647], "id": 17, "max_new_tokens": 5})");
  EXPECT_FALSE(ids.text);
  EXPECT_THAT(*ids.ids, ElementsAre(0, 2147483647));
  EXPECT_EQ(ids.id, "17");
  EXPECT_EQ(ids.own.max_new_tokens, 5);
  EXPECT_EQ(parse_prompt_line(R"({"prompt": "a"})").id, "");
}

TEST(PromptLine, GivesOneFormToEqualIds) {
  EXPECT_EQ(parse_prompt_line(R"({"prompt": "a", "id": "\u0061"})").id, R"("a")");
  EXPECT_EQ(parse_prompt_line(R"({"prompt": "a", "id": "7"})").id, R"("7")");
  EXPECT_EQ(parse_prompt_line(R"({"prompt": "a", "id": -7})").id, "-7");
}

TEST(PromptLine, SaysWhatIsWrong) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"({"prompt": "a)", "not JSON: column 14"},
      {"", "not JSON"},
      {"[1]", "not a JSON object"},
      {R"("prompt")", "not a JSON object"},
      {R"({"text": "a"})", "none of `prompt`, `prompt_ids` and `messages`"},
      {R"({"prompt": "a", "prompt_ids": [1]})",
       "more than one of `prompt`, `prompt_ids` and `messages`"},
      {R"({"prompt": ""})", "empty prompt"},
      {R"({"prompt_ids": []})", "empty prompt"},
      {R"({"prompt": null})", "`prompt` is not a string"},
      {R"({"prompt_ids": "1 2"})", "`prompt_ids` is not an array"},
      {R"({"prompt_ids": [1, 2.0]})", "`prompt_ids`[1] is not an integer from 0 to 2147483647"},
      {R"({"prompt_ids": [-1]})", "`prompt_ids`[0]"},
      {R"({"prompt_ids": [2147483648]})", "`prompt_ids`[0]"},
      {R"({"prompt_ids": [18446744073709551615]})", "`prompt_ids`[0]"},
      {R"({"prompt_ids": [true]})", "`prompt_ids`[0]"},
      {R"({"prompt": "a", "max_new_tokens": 0})", "`max_new_tokens`"},
      {R"({"prompt": "a", "max_new_tokens": 1.5})", "`max_new_tokens`"},
      {R"({"prompt": "a", "max_new_tokens": 9223372036854775808})", "`max_new_tokens`"},
      {R"({"prompt": "a", "max_new_tokens": "5"})", "`max_new_tokens`"},
      {R"({"prompt": "a", "id": 1.5})", "`id` is neither"},
      {R"({"prompt": "a", "id": null})", "`id` is neither"},
      {R"({"prompt": "a", "id": 99999999999999999999})", "`id` is neither"},
      {"{\"prompt\": \"a\xff\"}", "invalid UTF-8 at byte 13 of the line (0xff)"},
      {"{\"prompt\": \"\xED\xA0\x80\"}", "invalid UTF-8 at byte 12"},
      {R"({"prompt": "\ud800"})", "not JSON"},
      {R"({"prompt": "a", "prompt": "b"})", "`prompt` is there twice"},
      {R"({"messages": [{"role": "user", "content": "a", "content": "b"}]})",
       "`content` is there twice"},
      {R"({"prompt": "a", "x": {"k": 1, "k": 2}})", "`k` is there twice"},
  };
  for (const auto& [line, message] : cases) EXPECT_THAT(refusal(line), HasSubstr(message)) << line;
}

TEST(PromptLine, RefusesKeysThatLookLikeSettingsAndSaysWhereTheyBelong) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"max_new_token", "`max_new_token` is no key of a line; did you mean `max_new_tokens`?"},
      {"promt", "did you mean `prompt`?"},
      {"Prompt", "did you mean `prompt`?"},
      {"prompt_id", "did you mean `prompt_ids`?"},
      {"message", "did you mean `messages`?"},
      {"tool", "did you mean `tools`?"},
      {"chat_template_kwarg", "did you mean `chat_template_kwargs`?"},
      {"max_tokens", "`max_tokens` is no key of a line: write `max_new_tokens`"},
      {"add_generation_prompt", "put it into `chat_template_kwargs`"},
      {"enable_thinking", "put it into `chat_template_kwargs`"},
      {"chat_template", "the checkpoint's own template counts"},
      {"do_sample", "write `temperature`; 0 is greedy"},
      {"top_logprobs", "write `logprobs`, a number"},
      {"n", "write a line for each sample"},
      {"temprature", "did you mean `temperature`?"},
  };
  for (const auto& [key, message] : cases) {
    EXPECT_THAT(refusal(R"({"prompt": "a", ")" + key + R"(": 1})"), HasSubstr(message)) << key;
  }
  // The user's own, and those of our results, which can be prompts again.
  for (const char* key :
       {"label", "source", "idx", "uid", "category", "answer", "language", "model", "text",
        "token_ids", "prompt_tokens", "finish_reason", "rank", "topic"}) {
    EXPECT_EQ(parse_prompt_line(R"({"prompt": "a", ")" + std::string(key) + R"(": 1})").text, "a");
  }
  EXPECT_EQ(parse_prompt_line(R"({"prompt": "a", "logprobs": []})").text, "a");
  EXPECT_EQ(parse_prompt_line(R"({"prompt": "a", "logprobs": 2})").own.logprobs, 2);
}

TEST(PromptLine, TakesSettingsOfItsOwn) {
  const OwnSettings own =
      parse_prompt_line(R"({"prompt": "a", "max_new_tokens": 7, "min_new_tokens": 2,
      "temperature": 0.5, "top_k": -1, "top_p": 0.25, "min_p": 0.125, "repetition_penalty": 1.5,
      "presence_penalty": -0.5, "frequency_penalty": 2, "logit_bias": {"17": -100, "0": 1.5},
      "seed": -3, "stop": "end", "ignore_eos": true, "logprobs": 0, "prompt_logprobs": 4})")
          .own;
  OwnSettings wanted;
  wanted.max_new_tokens = 7;
  wanted.min_new_tokens = 2;
  wanted.temperature = 0.5F;
  wanted.top_k = 0;
  wanted.top_p = 0.25F;
  wanted.min_p = 0.125F;
  wanted.repetition_penalty = 1.5F;
  wanted.presence_penalty = -0.5F;
  wanted.frequency_penalty = 2.0F;
  wanted.logit_bias = {{0, 1.5F}, {17, -100.0F}};
  wanted.seed = static_cast<std::uint64_t>(-3);
  wanted.draw_number = 0;
  wanted.stop = {"end"};
  wanted.ignore_eos = true;
  wanted.logprobs = 0;
  wanted.prompt_logprobs = 4;
  EXPECT_EQ(own, wanted);
  EXPECT_EQ(parse_prompt_line(R"({"prompt": "a", "temperature": null, "stop": null})").own,
            OwnSettings());
  Prompt prompt;
  prompt.text = "a";
  prompt.own = own;
  prompt.stream = true;
  const Prompt back = Prompt::deserialize(prompt.serialize());
  EXPECT_EQ(back.own, own);
  EXPECT_TRUE(back.stream);
}

TEST(PromptLine, SaysWhichSettingIsWrong) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"("temperature": -1)", "`temperature` is not a number from 0 or 1e-30 to 1e+30"},
      {R"("temperature": "hot")", "`temperature`"},
      {R"("temperature": true)", "`temperature`"},
      {R"("temperature": 1e999)", "not JSON"},
      {R"("top_p": 0)", "`top_p`"},
      {R"("top_p": 1.5)", "`top_p`"},
      {R"("top_k": -2)", "`top_k` is not an integer from -1"},
      {R"("min_p": 2)", "`min_p`"},
      {R"("repetition_penalty": 0)", "`repetition_penalty`"},
      {R"("presence_penalty": [])", "`presence_penalty`"},
      {R"("frequency_penalty": 1e9)", "`frequency_penalty`"},
      {R"("logit_bias": [1])", "`logit_bias` is not an object"},
      {R"("logit_bias": {"x": 1})", "`logit_bias`: `x` is no token id"},
      {R"("logit_bias": {"-1": 1})", "`logit_bias`: `-1` is no token id"},
      {R"("logit_bias": {"5": 1, "05": 1})", "`logit_bias`: `05` is no token id"},
      {R"("seed": 18446744073709551615)", "`seed` is not an integer"},
      {R"("top_k": 18446744073709551615)", "`top_k` is not an integer from -1"},
      {R"("max_new_tokens": 18446744073709551615)", "`max_new_tokens` is not an integer"},
      {R"("logit_bias": {"1": 101})", "`logit_bias`: the bias of token 1"},
      {R"("logit_bias": {"1": "a"})", "`logit_bias`: the bias of token 1"},
      {R"("seed": 1.5)", "`seed`"},
      {R"("stop": 1)", "`stop` is neither"},
      {R"("stop": ["a", ""])", "`stop` holds an empty text"},
      {R"("ignore_eos": 1)", "`ignore_eos` is not true or false"},
      {R"("logprobs": 101)", "`logprobs` is not an integer from 0 to 100"},
      {R"("logprobs": true)", "`logprobs`"},
      {R"("min_new_tokens": -1)", "`min_new_tokens`"},
  };
  for (const auto& [member, message] : cases) {
    EXPECT_THAT(refusal(R"({"prompt": "a", )" + member + "}"), HasSubstr(message)) << member;
  }
}

TEST(PromptLine, RefusesDeepNestingInsteadOfCrashing) {
  for (const std::string& open : {std::string("["), std::string("{\"a\":")}) {
    std::string line = R"({"prompt": "a", "other": )";
    for (int i = 0; i < 200'000; ++i) line += open;
    EXPECT_THAT(refusal(line), HasSubstr("nested deeper than 64"));
  }
}

TEST(PromptLine, KeepsMessagesShortAndValid) {
  std::string line = "{\"prompt\": \"";
  for (int i = 0; i < 1000; ++i) line += "é";
  EXPECT_LT(refusal(line).size(), 300u);
}

}  // namespace
}  // namespace zi
