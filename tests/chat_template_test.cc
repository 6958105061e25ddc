#include "chat/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "temporary_directory.h"
#include "text/chat_prompt.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using test::TemporaryDirectory;
using testing::AllOf;
using testing::HasSubstr;

class ChatTemplateTest : public testing::Test {
 protected:
  void write(const std::string& name, const std::string& text) {
    const auto path = folder_.path() / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << text;
  }
  std::string rendered(const std::string& line) const {
    return CheckpointChat(folder_.path()).render(parse_chat_line(line));
  }
  /// What is wrong with the checkpoint.
  std::string refusal() const {
    try {
      return "gives " + rendered(kUser);
    } catch (const CheckpointError& error) {
      return error.what();
    }
  }
  std::string prompt_refusal(const std::string& line) const {
    try {
      return "gives " + rendered(line);
    } catch (const PromptError& error) {
      return error.what();
    }
  }

  static constexpr const char* kUser = R"({"messages": [{"role": "user", "content": "hi"}]})";
  TemporaryDirectory folder_;
};

TEST_F(ChatTemplateTest, TakesTheFileOfItsOwnBeforeTheTokenizersConfig) {
  write("tokenizer_config.json", R"({"chat_template": "config"})");
  EXPECT_EQ(rendered(kUser), "config");
  write("chat_template.jinja", "file");
  EXPECT_EQ(rendered(kUser), "file");
}

TEST_F(ChatTemplateTest, TakesTheTemplateForToolsWhereThereAreTools) {
  write("tokenizer_config.json",
        R"({"chat_template": [{"name": "default", "template": "plain"},
            {"name": "rag", "template": "{% extends %}"},
            {"name": "tool_use", "template": "tools {{ tools | length }}"}]})");
  EXPECT_EQ(rendered(kUser), "plain");
  EXPECT_EQ(rendered(R"({"messages": [{"role": "user"}], "tools": [{}]})"), "tools 1");
  write("chat_template.jinja", "own");
  EXPECT_EQ(rendered(R"({"messages": [{"role": "user"}], "tools": [{}]})"), "own");
  write("additional_chat_templates/tool_use.jinja", "own tools");
  EXPECT_EQ(rendered(R"({"messages": [{"role": "user"}], "tools": [{}]})"), "own tools");
  EXPECT_EQ(rendered(kUser), "own");
}

TEST_F(ChatTemplateTest, PassesSpecialTokensAsTheTokenizersFilesNameThem) {
  write("chat_template.jinja",
        "{{ bos_token }}|{{ eos_token }}|{{ pad_token is defined }}|{{ unk_token }}|"
        "{{ additional_special_tokens }}");
  write("tokenizer_config.json",
        R"({"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"},
            "pad_token": null, "additional_special_tokens": ["<a>", {"content": "<b>"}]})");
  EXPECT_EQ(rendered(kUser), "<s>|</s>|False||['<a>', '<b>']");
  // The older file has the last word where the config does not number its tokens.
  write("special_tokens_map.json", R"({"bos_token": "<B>", "unk_token": {"content": "<unk>"}})");
  EXPECT_EQ(rendered(kUser), "<B>|</s>|False|<unk>|['<a>', '<b>']");
  write("tokenizer_config.json", R"({"bos_token": "<s>", "added_tokens_decoder": {}})");
  EXPECT_EQ(rendered(kUser), "<s>||False||");
}

TEST_F(ChatTemplateTest, PassesWhatTransformersPasses) {
  write("chat_template.jinja",
        "{{ messages }} {{ tools }} {{ documents }} {{ add_generation_prompt }} {{ x }}");
  EXPECT_EQ(rendered(kUser), "[{'role': 'user', 'content': 'hi'}] None None True ");
  EXPECT_EQ(rendered(R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}],
                         "name": "ann"}], "tools": [{"b": 1, "a": 2}],
                         "chat_template_kwargs": {"x": [1, null], "add_generation_prompt": false}})"),
            "[{'role': 'user', 'content': [{'type': 'text', 'text': 'a'}], 'name': 'ann'}] "
            "[{'b': 1, 'a': 2}] None False [1, None]");
}

TEST_F(ChatTemplateTest, NamesACheckpointWithoutATemplate) {
  EXPECT_THAT(refusal(), AllOf(HasSubstr(folder_.path().string() + " has no chat template"),
                               HasSubstr("give its prompts as text")));
  write("tokenizer_config.json", R"({"chat_template": null})");
  EXPECT_THAT(refusal(), HasSubstr("has no chat template"));
  write("tokenizer_config.json", R"({"chat_template": [{"name": "tool_use", "template": ""}]})");
  EXPECT_THAT(refusal(), HasSubstr("none with the name `default`"));
  write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": ""}]})");
  EXPECT_THAT(refusal(), HasSubstr("none with the name `default` (there is `rag`)"));
}

TEST_F(ChatTemplateTest, WarnsOfATokenThatTheTemplateUsesAndNoFileNames) {
  const auto warning = [&] {
    ::testing::internal::CaptureStderr();
    CheckpointChat(folder_.path()).load();
    return ::testing::internal::GetCapturedStderr();
  };
  write("chat_template.jinja", "{{ bos_token }}x");
  EXPECT_THAT(warning(), AllOf(HasSubstr("chat_template.jinja uses `bos_token`, which neither"),
                               HasSubstr("it is empty here")));
  write("special_tokens_map.json", R"({"bos_token": "<s>"})");
  EXPECT_EQ(warning(), "");
  write("special_tokens_map.json", "{}");
  write("tokenizer_config.json", R"({"bos_token": null})");
  EXPECT_EQ(warning(), "") << "a file says that there is none";
  write("tokenizer_config.json", "{}");
  write("chat_template.jinja", "x");
  EXPECT_EQ(warning(), "");
}

TEST_F(ChatTemplateTest, NamesTemplatesThatCannotBeUsed) {
  const std::vector<std::pair<std::string, std::string>> configs = {
      {R"({"chat_template": 5})", "neither a text nor a list"},
      {R"({"chat_template": [5]})", "no `name` and `template`"},
      {R"({"chat_template": [{"name": "default"}]})", "no `name` and `template`"},
      {R"({"chat_template": "a\n{% nosuch %}"})",
       "tokenizer_config.json, chat_template:2: there is no tag `nosuch`"},
      {R"({"bos_token": 5, "chat_template": "a"})",
       "tokenizer_config.json: `bos_token` is `5`; a text or an object with `content` was"},
      {R"({"eos_token": {"id": 5}, "chat_template": "a"})", "`eos_token` is"},
      {R"({"additional_special_tokens": [[]], "chat_template": "a"})",
       "`additional_special_tokens` is"},
      {"[]", "a JSON object was expected"},
      {"{", "not valid JSON"}};
  for (const auto& [config, message] : configs) {
    write("tokenizer_config.json", config);
    EXPECT_THAT(refusal(), HasSubstr(message)) << config;
  }
  write("tokenizer_config.json", "{}");
  write("chat_template.jinja", std::string((1 << 20) + 1, 'x'));
  EXPECT_THAT(refusal(), HasSubstr("at most 1048576"));
  write("chat_template.jinja", "a\xff");
  EXPECT_THAT(refusal(), HasSubstr("invalid UTF-8 at byte 1"));
  write("chat_template.jinja", "\n\n{{ 1 | nosuch }}");
  EXPECT_THAT(refusal(), HasSubstr("chat_template.jinja:3: there is no filter `nosuch`"));
}

TEST_F(ChatTemplateTest, NamesMessagesThatAreNone) {
  write("chat_template.jinja", "x");
  const std::vector<std::pair<std::string, std::string>> lines = {
      {R"({"messages": "hi"})", "`messages` is not a list"},
      {R"({"messages": null})", "`messages` is not a list"},
      {R"({"messages": []})", "`messages` is empty"},
      {R"({"messages": ["hi"]})", "`messages`[0] is not an object"},
      {R"({"messages": [{"role": "user"}, {"content": "x"}]})", "`messages`[1] has no `role`"},
      {R"({"messages": [{"role": 1}]})", "`messages`[0]: `role` is not a text"},
      {R"({"messages": [{"role": "user", "content": 5}]})",
       "`messages`[0]: `content` is neither a text nor a list of parts"},
      {R"({"messages": [{"role": "user", "content": [{"text": "x"}]}]})",
       "`messages`[0]: a part of `content` has no `type`"},
      {R"({"messages": [{"role": "user", "content": [{"type": "image"}]}]})",
       "`messages`[0]: a part of `content` is of the type `image`; only text is supported"},
      {R"({"messages": [{"role": "user"}], "tools": {}})", "`tools` is not a list"},
      {R"({"messages": [{"role": "user"}], "tools": [{}, 5]})", "`tools`[1] is not an object"},
      {R"({"messages": [{"role": "user", "n": 18446744073709551615}]})",
       "the integer 18446744073709551615 is beyond 2^63 - 1"},
      {R"({"messages": [{"role": "user"}], "chat_template_kwargs": []})",
       "`chat_template_kwargs` is not an object"},
      {R"({"messages": [{"role": "user"}], "chat_template_kwargs": {"tools": []}})",
       "`chat_template_kwargs` has `tools`, which is a key of the line"},
      {R"({"messages": [{"role": "user", "n": 99999999999999999999}]})",
       "the integer `99999999999999999999` is beyond 64 bits"},
  };
  for (const auto& [line, message] : lines) EXPECT_EQ(prompt_refusal(line), message) << line;
}

TEST_F(ChatTemplateTest, TellsWhatTheTemplateSaysOfMessages) {
  write("chat_template.jinja",
        "{% if messages[0].role != 'user' %}\n{{ raise_exception('Start\nwith the user!') }}"
        "{% endif %}\n{{ messages[0].content + 1 }}");
  EXPECT_EQ(prompt_refusal(R"({"messages": [{"role": "bot"}]})"),
            "the chat template refuses these messages: Start\xEF\xBF\xBDwith the user!");
  EXPECT_THAT(prompt_refusal(kUser), AllOf(HasSubstr("the chat template fails"),
                                           HasSubstr("chat_template.jinja:4): `+` does not work")));
}

TEST_F(ChatTemplateTest, IsKnownByAllThatMakesItsText) {
  write("chat_template.jinja", "{{ bos_token }}x");
  write("tokenizer_config.json", R"({"bos_token": "<s>"})");
  const auto hash = [&](const std::string& line) {
    return CheckpointChat(folder_.path()).hash(parse_chat_line(line));
  };
  const std::string first = hash(kUser);
  EXPECT_EQ(first.size(), 16u);
  EXPECT_EQ(hash(kUser), first);
  EXPECT_NE(hash(R"({"messages": [{"role": "user", "content": "ho"}]})"), first);
  EXPECT_NE(hash(R"({"messages": [{"role": "user", "content": "hi"}], "tools": []})"), first);
  EXPECT_NE(hash(R"({"messages": [{"role": "user", "content": "hi"}],
                     "chat_template_kwargs": {"a": 1}})"),
            first);
  write("tokenizer_config.json", R"({"bos_token": "<t>"})");
  EXPECT_NE(hash(kUser), first);
  write("tokenizer_config.json", R"({"bos_token": "<s>"})");
  write("chat_template.jinja", "{{ bos_token }}y");
  EXPECT_NE(hash(kUser), first);
}

TEST_F(ChatTemplateTest, MayBeUsedByThreadsAtOnce) {
  write("chat_template.jinja",
        "{% set n = namespace(x=0) %}{% for i in range(50) %}"
        "{% set n.x = n.x + i %}{% endfor %}{{ n.x }}");
  const CheckpointChat chat(folder_.path());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) EXPECT_EQ(chat.render(parse_chat_line(kUser)), "1225");
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace zi
