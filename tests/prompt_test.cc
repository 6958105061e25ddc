#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/file_descriptor.h"
#include "text/prompt_line.h"
#include "text/prompt_source.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::ThrowsMessage;

class PromptTest : public testing::Test {
 protected:
  PromptTest() {
    std::string name = testing::TempDir() + "zi-prompt-XXXXXX";
    directory_ = ::mkdtemp(name.data());
  }
  ~PromptTest() override { std::filesystem::remove_all(directory_); }

  std::filesystem::path file(const std::string& text) {
    std::ofstream(path(), std::ios::binary) << text;
    return path();
  }
  std::filesystem::path path() const { return directory_ / "in.jsonl"; }

  std::unique_ptr<PromptSource> open(const std::string& text) {
    return prompts_from_jsonl(file(text), [this](const std::string& e) { errors_.push_back(e); });
  }
  /// Everything that a source gives; each call takes at most `most`.
  static std::vector<Prompt> all(PromptSource& source, std::size_t most = 100) {
    std::vector<Prompt> prompts;
    while (!source.exhausted()) {
      auto some = source.take(most, true);
      EXPECT_LE(some.size(), most);
      std::move(some.begin(), some.end(), std::back_inserter(prompts));
    }
    return prompts;
  }
  std::vector<Prompt> read(const std::string& text) {
    const auto source = open(text);
    return all(*source);
  }

  std::filesystem::path directory_;
  std::vector<std::string> errors_;
};

std::vector<std::string> texts(const std::vector<Prompt>& prompts) {
  std::vector<std::string> out;
  for (const Prompt& prompt : prompts) out.push_back(prompt.text.value_or("-"));
  return out;
}

std::vector<std::string> ids(const std::vector<Prompt>& prompts) {
  std::vector<std::string> out;
  for (const Prompt& prompt : prompts) out.push_back(prompt.id);
  return out;
}

TEST_F(PromptTest, MessagesBecomeATextWithAllItsSpecialTokens) {
  std::ofstream(directory_ / "chat_template.jinja") << "<s>{{ messages[0].content }}";
  const CheckpointChat chat(directory_);
  const Prompt prompt =
      parse_prompt_line(R"({"messages": [{"role": "user", "content": "a"}]})", &chat);
  EXPECT_EQ(prompt.text, "<s>a");
  EXPECT_TRUE(prompt.no_special_tokens);
  EXPECT_EQ(prompt.chat_hash.size(), 16u);
  EXPECT_FALSE(parse_prompt_line(R"({"prompt": "<s>a"})", &chat).no_special_tokens);
  EXPECT_THAT([] { parse_prompt_line(R"({"messages": [{"role": "user", "content": "a"}]})"); },
              ThrowsMessage<PromptError>(HasSubstr("need a model with a chat template")));
  EXPECT_THAT([] { parse_prompt_line(R"({"messages": [{"role": "user"}], "prompt": "a"})"); },
              ThrowsMessage<PromptError>(HasSubstr("more than one of")));
}

TEST_F(PromptTest, TextPartsAreJoinedWhereTheTemplateTakesNoList) {
  const auto prompt = [&](const std::string& source, const std::string& line) {
    std::ofstream(directory_ / "chat_template.jinja") << source;
    const CheckpointChat chat(directory_);
    return parse_prompt_line(line, &chat).text.value();
  };
  const std::string parts = R"([{"type": "text", "text": "a "}, "b"])";
  const std::string line = R"({"messages": [{"role": "system", "content": )" + parts +
                           R"(}, {"role": "user", "content": )" + parts +
                           R"(}, {"role": "assistant", "content": )" + parts +
                           R"(}, {"role": "user", "content": "c"}]})";
  // Those that are written for texts: Llama 3 prints what it gets, Qwen3 takes no list for a text.
  EXPECT_EQ(prompt("{% for m in messages %}[{{ m['content'] | trim }}]{% endfor %}", line),
            "[a \nb][a \nb][a \nb][c]");
  EXPECT_EQ(prompt("{% for m in messages %}[{{ m.content if m.content is string else '' }}]"
                   "{% endfor %}",
                   line),
            "[a \nb][a \nb][a \nb][c]");
  EXPECT_EQ(prompt("{% for m in messages %}{{ m.content | tojson }}{% endfor %}", line),
            R"("a \nb""a \nb""a \nb""c")");
  // One that takes lists gets them, whichever way it goes over them.
  const std::string macro =
      "{% macro text(c) %}{% if c is string %}{{ c }}{% else %}{% for p in c %}"
      "{% if p.type == 'text' %}{{ p.text }}|{% endif %}{% endfor %}{% endif %}{% endmacro %}";
  EXPECT_EQ(prompt(macro + "{% for m in messages %}[{{ text(m.content) }}]{% endfor %}", line),
            "[a |b|][a |b|][a |b|][c]");
  EXPECT_EQ(prompt("{% set c = messages[0].content %}{{ c if c is string else c[0].text }}", line),
            "a \nb")
      << "a template that takes the first part alone";
  // Llama 3.2 Vision takes them of the user alone, others refuse a system message.
  EXPECT_EQ(prompt(macro + "{% for m in messages %}[{% if m.role == 'user' %}{{ text(m.content) }}"
                           "{% else %}{{ m.content }}{% endif %}]{% endfor %}",
                   line),
            "[a \nb][a |b|][a \nb][c]");
  EXPECT_EQ(prompt("{% if messages[0].role == 'system' and messages[0].content is not string %}"
                   "{{ raise_exception('no parts') }}{% endif %}{{ messages[0].content }}",
                   line),
            "a \nb");
}

TEST_F(PromptTest, TextPartsReachTheTemplateInEveryRoleThatItTakesThemFrom) {
  const auto prompt = [&](const std::string& source) {
    std::ofstream(directory_ / "chat_template.jinja") << source;
    const CheckpointChat chat(directory_);
    const std::string parts = R"([{"type": "text", "text": "a"}, "b"])";
    return parse_prompt_line(
               R"({"messages": [{"role": "developer", "content": )" + parts +
                   R"(}, {"role": "user", "content": "c"}, {"role": "assistant", "tool_calls": [
                   {"id": "123456789", "type": "function", "function": {"name": "f", "arguments": {}}}]},
                   {"role": "tool", "tool_call_id": "123456789", "content": )" +
                   parts + R"(}, {"role": "other", "content": )" + parts + "}]}",
               &chat)
        .text.value();
  };
  const std::string text =
      "{% macro text(c) %}{% if c is string or not c %}{{ c or '' }}{% else %}"
      "{% for p in c %}{{ p.text }}|{% endfor %}{% endif %}{% endmacro %}";
  const std::string all = "{% for m in messages %}[{{ text(m.content) }}]{% endfor %}";
  EXPECT_EQ(prompt(text + all), "[a|b|][c][][a|b|][a|b|]");
  EXPECT_EQ(prompt("{% for m in messages %}[{{ m.content }}]{% endfor %}"),
            "[a\nb][c][][a\nb][a\nb]");
  EXPECT_EQ(prompt("{% for m in messages %}[{{ '' + (m.content or '') }}]{% endfor %}"),
            "[a\nb][c][][a\nb][a\nb]")
      << "it fails on a list in every order of messages";
  // gpt-oss wants a developer in the first place and a tool behind its call, others by its id.
  const std::string orders =
      "{% for m in messages %}{% if m.role == 'developer' and not loop.first %}"
      "{{ raise_exception('a developer begins') }}{% endif %}"
      "{% if m.role == 'tool' and (m.tool_call_id | length != 9 or "
      "loop.previtem.tool_calls[0].id != m.tool_call_id) %}"
      "{{ raise_exception('a result of nothing') }}{% endif %}{% endfor %}";
  EXPECT_EQ(prompt(orders + text + all), "[a|b|][c][][a|b|][a|b|]");
  // Others know no calls, or no turn between the user's and a result.
  const std::string no_calls =
      "{% for m in messages %}{% if m.tool_calls and messages | length < 5 %}"
      "{{ raise_exception('no calls') }}{% endif %}{% endfor %}";
  EXPECT_EQ(prompt(no_calls + text + all), "[a|b|][c][][a|b|][a|b|]");
  const std::string no_answers =
      "{% for m in messages %}{% if m.role == 'assistant' and messages | length < 5 %}"
      "{{ raise_exception('no answers') }}{% endif %}"
      "{% if m.role == 'developer' and loop.first and messages | length < 5 %}"
      "{{ raise_exception('the user begins') }}{% endif %}{% endfor %}";
  EXPECT_EQ(prompt(no_answers + text + all), "[a|b|][c][][a|b|][a|b|]");
}

TEST_F(PromptTest, PartsThatAreNoTextAreRefusedByName) {
  std::ofstream(directory_ / "chat_template.jinja") << "{{ messages[0].content }}";
  const CheckpointChat chat(directory_);
  const std::pair<std::string, std::string> cases[] = {
      {R"({"type": "image_url", "image_url": {"url": "x"}})",
       "`messages`[0]: a part of `content` is of the type `image_url`; only text is supported"},
      {R"({"type": "text", "content": "x"})",
       "`messages`[0]: a part of `content` has no `text`, or one that is no text"},
  };
  for (const auto& [part, reason] : cases) {
    const std::string line = R"({"messages": [{"role": "user", "content": [)" + part + "]}]}";
    EXPECT_THAT([&] { parse_prompt_line(line, &chat); }, ThrowsMessage<PromptError>(reason));
  }
}

TEST_F(PromptTest, ArgumentsOfToolCallsInATextBecomeAnObject) {
  std::ofstream(directory_ / "chat_template.jinja")
      << "{{ messages[0].tool_calls[0].function.arguments.x }}";
  const CheckpointChat chat(directory_);
  EXPECT_EQ(parse_prompt_line(R"({"messages": [{"role": "assistant", "tool_calls": [
                {"function": {"name": "f", "arguments": "{\"x\": 5}"}}]}]})",
                              &chat)
                .text,
            "5");
}

TEST_F(PromptTest, MessagesWithoutATemplateFailWhenTheFileIsOpenedOrAsLinesOfTheirOwn) {
  const auto chat = std::make_shared<const CheckpointChat>(directory_);
  const auto ignore = [](const std::string&) {};
  const auto path = file("\n{\"messages\": [{\"role\": \"user\"}]}\n{\"prompt\": \"a\"}\n");
  EXPECT_THROW(prompts_from_jsonl(path, ignore, chat), CheckpointError);
  // Further down, they are lines that cannot be used: the others run.
  std::vector<std::string> errors;
  const auto later = prompts_from_jsonl(
      file("{\"prompt\": \"a\"}\n{\"messages\": [{\"role\": \"user\"}]}\n{\"prompt\": \"b\"}\n"),
      [&](const std::string& error) { errors.push_back(error); }, chat);
  EXPECT_EQ(all(*later, 1).size(), 2u);
  EXPECT_THAT(errors, ElementsAre(AllOf(HasSubstr(":2: "), HasSubstr("has no chat template"))));
}

TEST(FlagPrompts, ComeInOrderWithTheirPlace) {
  const auto source = prompts_from_flags({"a", "b", "c"});
  EXPECT_EQ(source->total(), 3u);
  EXPECT_FALSE(source->exhausted());
  const auto two = source->take(2, true);
  EXPECT_THAT(texts(two), ElementsAre("a", "b"));
  EXPECT_EQ(two[1].index, 1u);
  EXPECT_EQ(two[1].id, "1");
  EXPECT_EQ(two[1].where, "--prompt 2");
  EXPECT_FALSE(source->exhausted());
  EXPECT_EQ(source->take(2, false).size(), 1u);
  EXPECT_TRUE(source->exhausted());
  EXPECT_THAT(source->take(2, true), IsEmpty());
}

TEST(FlagPrompts, AreRefusedWhenEmptyOrNotUtf8) {
  EXPECT_THROW(prompts_from_flags({"a", ""}), PromptError);
  EXPECT_THROW(prompts_from_flags({"\xff"}), PromptError);
}

TEST_F(PromptTest, ReadsOnePromptALine) {
  const auto source = open("{\"prompt\": \"a\"}\n{\"prompt_ids\": [1], \"id\": \"x\"}\n");
  EXPECT_EQ(source->total(), 2u);
  const auto prompts = all(*source, 1);
  EXPECT_THAT(texts(prompts), ElementsAre("a", "-"));
  EXPECT_THAT(ids(prompts), ElementsAre("0", "\"x\""));
  EXPECT_EQ(prompts[1].index, 1u);
  EXPECT_EQ(prompts[1].where, path().string() + ":2");
  EXPECT_THAT(errors_, IsEmpty());
  EXPECT_THAT(source->take(1, true), IsEmpty());
}

TEST_F(PromptTest, ToleratesCrlfMarksBlankLinesAndAMissingNewline) {
  const auto source = open("\xEF\xBB\xBF{\"prompt\": \"a\"}\r\n\r\n  \t\n\n{\"prompt\": \"b\"}");
  EXPECT_EQ(source->total(), 2u);
  const auto prompts = all(*source);
  EXPECT_THAT(texts(prompts), ElementsAre("a", "b"));
  EXPECT_EQ(prompts[1].index, 1u);
  EXPECT_EQ(prompts[1].where, path().string() + ":5");
  EXPECT_THAT(errors_, IsEmpty());
}

TEST_F(PromptTest, HasNoPromptInAnEmptyFile) {
  const auto source = open("");
  EXPECT_EQ(source->total(), 0u);
  EXPECT_THAT(all(*source), IsEmpty());
}

TEST_F(PromptTest, ReportsBadLinesAndRunsTheOthers) {
  const auto prompts = read(
      "{\"prompt\": \"a\"}\n"
      "{\"prompt\": \n"
      "{\"prompt\": \"\"}\n"
      "{\"prompt\": \"\xff\"}\n"
      "{\"prompt\": \"b\"}\n");
  EXPECT_THAT(texts(prompts), ElementsAre("a", "b"));
  EXPECT_EQ(prompts[1].index, 4u) << "bad lines count, so that mending one moves no id";
  EXPECT_THAT(errors_,
              ElementsAre(HasSubstr("in.jsonl:2: not JSON"), HasSubstr("in.jsonl:3: empty prompt"),
                          HasSubstr("in.jsonl:4: invalid UTF-8 at byte 12")));
}

TEST_F(PromptTest, ReportsErrorsAlsoWhenNoPromptIsLeft) {
  const auto prompts = read("{}\n{}\n");
  EXPECT_THAT(prompts, IsEmpty());
  EXPECT_EQ(errors_.size(), 2u);
}

TEST_F(PromptTest, RefusesASecondLineWithTheSameId) {
  const auto prompts = read(
      "{\"prompt\": \"a\", \"id\": \"x\"}\n"
      "{\"prompt\": \"b\", \"id\": 3}\n"
      "{\"prompt\": \"c\", \"id\": \"\\u0078\"}\n"
      "{\"prompt\": \"d\"}\n"
      "{\"prompt\": \"e\", \"id\": \"3\"}\n");
  EXPECT_THAT(texts(prompts), ElementsAre("a", "b", "e"));
  EXPECT_THAT(errors_,
              ElementsAre(HasSubstr("in.jsonl:3: `id` `\"x\"` is already used in line 1"),
                          testing::AllOf(HasSubstr("in.jsonl:4: `id` `3` (the line's number"),
                                         HasSubstr("is already used in line 2"))));
}

TEST_F(PromptTest, RefusesALineOfMoreThan64MiBAndGoesOn) {
  std::string text = "{\"prompt\": \"";
  text.append(64 << 20, 'a');
  text += "\"}\n{\"prompt\": \"b\"}\n";
  EXPECT_THAT(texts(read(text)), ElementsAre("b"));
  EXPECT_THAT(errors_, ElementsAre(HasSubstr("in.jsonl:1: longer than 64 MiB")));
}

TEST_F(PromptTest, ReadsMoreThanItsQueueHolds) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += "{\"prompt\": \"" + std::to_string(i) + "\"}\n";
  const auto prompts = texts(read(text));
  ASSERT_EQ(prompts.size(), 5000u);
  for (int i = 0; i < 5000; ++i) EXPECT_EQ(prompts[static_cast<std::size_t>(i)], std::to_string(i));
}

TEST_F(PromptTest, EndsWhileTheQueueIsFull) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += "{\"prompt\": \"a\"}\n";
  const auto source = open(text);
  EXPECT_EQ(source->take(1, true).size(), 1u);
}  // the reader waits for room here, and must end all the same

TEST_F(PromptTest, NamesAFileThatCannotBeOpened) {
  const auto message = [](const std::filesystem::path& path) -> std::string {
    try {
      prompts_from_jsonl(path, [](const std::string&) {});
    } catch (const IoError& error) {
      return error.what();
    }
    return "opened";
  };
  EXPECT_THAT(message("/nonexistent/in.jsonl"),
              HasSubstr("/nonexistent/in.jsonl: cannot be opened: No such file"));
  EXPECT_THAT(message(directory_), HasSubstr("this is a directory"));
}

TEST_F(PromptTest, ThrowsFromTakeWhenReadingFails) {
  // Reading the memory of a process at address 0 fails with EIO.
  const auto source = prompts_from_jsonl("/proc/self/mem", [](const std::string&) {});
  const auto take = [&] {
    while (!source->exhausted()) source->take(1, true);
  };
  EXPECT_THROW(take(), IoError);
  EXPECT_FALSE(source->exhausted());
  EXPECT_THROW(source->take(1, false), IoError) << "it goes on failing";
}

/// A source that reads a FIFO, and the FIFO's other end.
class PipePromptTest : public PromptTest {
 protected:
  PipePromptTest() {
    EXPECT_EQ(::mkfifo(path().c_str(), 0600), 0);
    source_ = prompts_from_jsonl(path(), [this](const std::string& e) { errors_.push_back(e); });
    writer_ = FileDescriptor(::open(path().c_str(), O_WRONLY | O_CLOEXEC));
  }
  void write(std::string_view text) {
    EXPECT_EQ(::write(writer_.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
  std::vector<Prompt> wait_for_one() {
    std::vector<Prompt> prompts;
    while (prompts.empty() && !source_->exhausted()) prompts = source_->take(10, true);
    return prompts;
  }
  std::unique_ptr<PromptSource> source_;
  FileDescriptor writer_;
};

TEST_F(PipePromptTest, GivesPromptsAsTheyCome) {
  EXPECT_EQ(source_->total(), std::nullopt);
  EXPECT_THAT(source_->take(1, false), IsEmpty());
  EXPECT_FALSE(source_->exhausted());
  write("{\"prompt\": \"a\"}\n{\"prompt\"");
  EXPECT_THAT(texts(wait_for_one()), ElementsAre("a"));
  EXPECT_THAT(source_->take(1, false), IsEmpty());
  write(": \"b\"}\n{\"prompt\": \"c\"}");
  EXPECT_THAT(texts(wait_for_one()), ElementsAre("b"));
  EXPECT_FALSE(source_->exhausted());
  writer_ = FileDescriptor();
  EXPECT_THAT(texts(all(*source_)), ElementsAre("c"));
}

TEST_F(PipePromptTest, ComesBackEmptyHandedFromAWaitOnASilentPipe) {
  EXPECT_THAT(source_->take(1, true), IsEmpty());
  EXPECT_FALSE(source_->exhausted());
}

TEST_F(PipePromptTest, EndsWhileTheReaderWaitsForASilentPipe) {
  write("{\"prompt\"");
  source_.reset();  // must not wait for the writer
}

TEST_F(PromptTest, ReadsStandardInput) {
  const int before = ::dup(STDIN_FILENO);
  {
    const FileDescriptor input(::open(file("{\"prompt\": \"a\"}\n{\n").c_str(), O_RDONLY));
    ASSERT_GE(::dup2(input.get(), STDIN_FILENO), 0);
  }
  {
    const auto source =
        prompts_from_jsonl("-", [this](const std::string& e) { errors_.push_back(e); });
    EXPECT_EQ(source->total(), std::nullopt);
    EXPECT_THAT(texts(all(*source)), ElementsAre("a"));
    EXPECT_THAT(errors_, ElementsAre(HasSubstr("standard input:2: ")));
  }
  ::dup2(before, STDIN_FILENO);
  ::close(before);
}

}  // namespace
}  // namespace zi
