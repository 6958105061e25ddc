// Messages, as a user gives them: in a prompt file and by --chat, with a template beside the
// bundled model.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <map>
#include <string>
#include <thread>

#include "cli_harness.h"

namespace zi::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr const char* kTemplate = R"({{ bos_token }}
{%- for m in messages %}
  {%- if m.role == 'critic' %}{{ raise_exception('no critics here') }}{% endif %}
  {%- if m.count %}{{ m.count + 1 }}{% endif %}
  {{- m.content if m.content is string else m.content | map(attribute='text') | join }}{{ ' ' if not loop.last }}
{%- endfor %}
{%- if tools %} with {{ tools[0].name }}{% endif %}{{ suffix }})";

class CliChat : public testing::Test {
 protected:
  CliChat() : model_(copy_of_model(folder_)) {
    write_file(model_ + "/chat_template.jinja", kTemplate);
  }

  std::vector<std::string> arguments(const std::vector<std::string>& more) const {
    std::vector<std::string> all = {"--model", model_, "--max-new-tokens", "6", "--output", out_};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  std::map<std::string, nlohmann::json> results() const {
    std::map<std::string, nlohmann::json> by_id;
    for (auto& line : json_lines(read_file(out_))) by_id[line.at("id").dump()] = line;
    return by_id;
  }

  TemporaryFolder folder_;
  std::string model_;
  std::string in_ = folder_ / "in.jsonl";
  std::string out_ = folder_ / "out.jsonl";
};

TEST_F(CliChat, MessagesAreAnsweredAsTheTextThatTheTemplateMakesOfThem) {
  write_file(in_,
             R"({"id": "m", "messages": [{"role": "user", "content": "In the beginning"},
 {"role": "assistant", "content": "God created"}]})"
             "\n"
             R"({"id": "t", "prompt": "<s>In the beginning God created"})"
             "\n"
             R"({"id": "parts", "messages": [{"role": "user", "content": [
 {"type": "text", "text": "In the "}, {"type": "text", "text": "beginning"}]}]})"
             "\n");
  std::string lines = read_file(in_);
  for (std::size_t at = 0; (at = lines.find("\n ", at)) != std::string::npos;) lines.erase(at, 1);
  lines +=
      R"({"id": "more", "messages": [{"role": "user", "content": "Go"}], "tools": [{"name": "us"}], "chat_template_kwargs": {"suffix": "."}})"
      "\n";
  write_file(in_, lines);
  const Ended ended = run_job(2, arguments({"--prompts", in_}));
  ASSERT_EQ(ended.code, 0) << ended.err;
  auto by_id = results();
  const auto& m = by_id["\"m\""];
  const auto& t = by_id["\"t\""];
  EXPECT_EQ(m.at("prompt"), "<s>In the beginning God created");
  EXPECT_EQ(m.at("prompt_tokens"), t.at("prompt_tokens"));
  EXPECT_EQ(m.at("token_ids"), t.at("token_ids"));
  EXPECT_EQ(m.at("chat_hash").get<std::string>().size(), 16u);
  EXPECT_FALSE(t.contains("chat_hash"));
  EXPECT_EQ(by_id["\"parts\""].at("prompt"), "<s>In the beginning");
  EXPECT_EQ(by_id["\"more\""].at("prompt"), "<s>Go with us.");
}

TEST_F(CliChat, TheTemplateWritesTheSpecialTokensAndTheTokenizerAddsNone) {
  auto tokenizer = nlohmann::json::parse(read_file(model_ + "/tokenizer.json"));
  tokenizer["post_processor"] = {
      {"type", "BertProcessing"}, {"cls", {"<s>", 1}}, {"sep", {"<pad>", 3}}};
  write_file(model_ + "/tokenizer.json", tokenizer.dump());
  write_file(in_, R"({"id": "chat", "messages": [{"role": "user", "content": "the LORD"}]})"
                  "\n"
                  R"({"id": "text", "prompt": "<s>the LORD"})"
                  "\n");
  const Ended ended = run_job(0, arguments({"--prompts", in_}));
  ASSERT_EQ(ended.code, 0) << ended.err;
  auto by_id = results();
  const auto& chat = by_id["\"chat\""];
  const auto& text = by_id["\"text\""];
  EXPECT_EQ(chat.at("prompt"), text.at("prompt"));
  EXPECT_EQ(chat.at("prompt_tokens").get<int>() + 2, text.at("prompt_tokens").get<int>());
}

TEST_F(CliChat, TheFlagMakesEachPromptAMessage) {
  const Ended ended =
      run_job(2, arguments({"--chat", "--prompt", "Jesus wept.", "--prompt", "<s>"}));
  ASSERT_EQ(ended.code, 0) << ended.err;
  auto by_id = results();
  EXPECT_EQ(by_id["0"].at("prompt"), "<s>Jesus wept.");
  EXPECT_EQ(by_id["1"].at("prompt"), "<s><s>");
}

TEST_F(CliChat, MessagesThatCannotBeUsedFailAloneWithOneLineEach) {
  write_file(
      in_,
      "{\"messages\": [{\"role\": \"critic\", \"content\": \"x\"}]}\n"
      "{\"messages\": []}\n"
      "{\"messages\": [{\"role\": \"user\", \"content\": \"Jesus wept.\"}], \"id\": \"good\"}\n"
      "{\"messages\": [{\"content\": \"x\"}]}\n"
      "{\"messages\": [{\"role\": \"user\", \"count\": \"a\"}]}\n");
  const Ended ended = run_job(2, arguments({"--prompts", in_}));
  EXPECT_EQ(ended.code, 3) << ended.err;
  EXPECT_THAT(
      ended.err,
      AllOf(HasSubstr("in.jsonl:1: the chat template refuses these messages: no critics here"),
            HasSubstr("in.jsonl:2: `messages` is empty"),
            HasSubstr("in.jsonl:4: `messages`[0] has no `role`"),
            HasSubstr("in.jsonl:5: the chat template fails ("),
            HasSubstr("4 prompts failed (named above); all others ran")));
  ASSERT_EQ(results().size(), 1u);
  EXPECT_EQ(results()["\"good\""].at("prompt"), "<s>Jesus wept.");
}

TEST_F(CliChat, ACheckpointWithoutATemplateIsRefusedBeforeAnythingRuns) {
  write_file(in_,
             "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\n{\"prompt\": \"a\"}\n");
  const auto refused = [&](const std::string& why) {
    for (const auto& more : {std::vector<std::string>{"--chat", "--prompt", "x"},
                             std::vector<std::string>{"--prompts", in_}}) {
      const Ended ended = run_job(0, arguments(more));
      EXPECT_EQ(ended.code, 2) << ended.err;
      EXPECT_THAT(ended.err, AllOf(HasSubstr(why), Not(HasSubstr("memory of a rank"))));
      EXPECT_FALSE(std::filesystem::exists(out_));
    }
  };
  std::filesystem::remove(model_ + "/chat_template.jinja");
  refused("has no chat template");
  write_file(model_ + "/chat_template.jinja", "\n{% nosuch %}");
  refused("chat_template.jinja:2: there is no tag `nosuch`");
  EXPECT_EQ(run_job(0, arguments({"--prompt", "x"})).code, 0) << "a text needs no template";
}

TEST_F(CliChat, TheFlagIsForPromptsOfTheCommandLineAlone) {
  write_file(in_, "{\"prompt\": \"a\"}\n");
  const Ended file = run_job(0, arguments({"--chat", "--prompts", in_}));
  EXPECT_EQ(file.code, 2);
  EXPECT_THAT(file.err, HasSubstr("--chat is for --prompt"));
  const Ended benchmark = run_job(0, {"--model", model_, "--chat", "--benchmark"});
  EXPECT_EQ(benchmark.code, 2);
  EXPECT_THAT(benchmark.err, HasSubstr("--chat has no meaning"));
}

TEST_F(CliChat, ResumeKnowsMessagesAgainWhenTheirTextTellsAnotherTime) {
  write_file(model_ + "/chat_template.jinja", "{{ strftime_now('%s') }}{{ messages[0].content }}");
  const std::string first =
      "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"id\": 1}\n";
  write_file(in_, first);
  ASSERT_EQ(run_job(0, arguments({"--prompts", in_})).code, 0);
  const std::string before = read_file(out_);
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  const Ended again = run_job(0, arguments({"--prompts", in_, "--resume"}));
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(read_file(out_), before);
  for (const char* other : {R"({"messages": [{"role": "user", "content": "y"}], "id": 1})",
                            R"({"prompt": "x", "id": 1})"}) {
    write_file(in_, std::string(other) + "\n");
    const Ended changed = run_job(0, arguments({"--prompts", in_, "--resume"}));
    EXPECT_EQ(changed.code, 2);
    EXPECT_THAT(changed.err, HasSubstr("is in the output file with another prompt")) << other;
  }
  write_file(in_, first);
  write_file(model_ + "/chat_template.jinja", "another {{ strftime_now('%s') }}");
  EXPECT_EQ(run_job(0, arguments({"--prompts", in_, "--resume"})).code, 2) << "another template";
}

TEST_F(CliChat, AnyEndOfTextOfTheGenerationConfigEndsAnAnswer) {
  const auto answer = [&] {
    EXPECT_EQ(run_job(0, arguments({"--chat", "--prompt", "In the beginning"})).code, 0);
    return results()["0"];
  };
  const auto whole = answer();
  ASSERT_EQ(whole.at("finish_reason"), "length");
  const auto third = whole.at("token_ids").at(2);
  write_file(model_ + "/generation_config.json",
             nlohmann::json{{"eos_token_id", {4000, third}}}.dump());
  const auto cut = answer();
  EXPECT_EQ(cut.at("finish_reason"), "eos");
  EXPECT_LE(cut.at("token_ids").size(), 3u);
  EXPECT_EQ(cut.at("token_ids").back(), third);
}

TEST_F(CliChat, ATerminalsLinesAreAConversation) {
  const Ended chat = run_job(0, {"chat", "--model", model_, "--max-new-tokens", "6", "--quiet"},
                             "In the beginning\n/new\nJesus wept\n");
  EXPECT_EQ(chat.code, 0) << chat.err;
  write_file(in_, R"({"messages": [{"role": "user", "content": "In the beginning"}]}
{"messages": [{"role": "user", "content": "Jesus wept"}]}
)");
  EXPECT_EQ(run_job(0, arguments({"--prompts", in_})).code, 0);
  const auto answers = results();
  EXPECT_EQ(chat.out, answers.at("0").at("text").get<std::string>() + "\n" +
                          answers.at("1").at("text").get<std::string>() + "\n");
  EXPECT_THAT(run_job(0, {"chat", "--model", model()}).err, HasSubstr("chat template"));
  EXPECT_THAT(run_job(0, {"chat", "--model", model_, "--prompt", "a"}).err,
              HasSubstr("--prompt is for a job: a chat gets its prompts from the terminal"));
}

}  // namespace
}  // namespace zi::test
