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

TEST(Prompt, SurvivesTheTripBetweenRanks) {
  Prompt prompt;
  prompt.index = 1ull << 40;
  prompt.id = R"("a")";
  prompt.text = std::string("a\0b\xff", 4);
  prompt.where = "in.jsonl:3";
  Prompt back = Prompt::deserialize(prompt.serialize());
  EXPECT_EQ(back.index, prompt.index);
  EXPECT_EQ(back.id, prompt.id);
  EXPECT_EQ(back.text, prompt.text);
  EXPECT_FALSE(back.ids);
  EXPECT_FALSE(back.text_ids);
  EXPECT_FALSE(back.own.max_new_tokens);
  EXPECT_EQ(back.where, prompt.where);
  prompt.text_ids = {97, 0, 98};
  back = Prompt::deserialize(prompt.serialize());
  EXPECT_EQ(back.text, prompt.text);
  EXPECT_FALSE(back.ids);
  EXPECT_EQ(back.text_ids, prompt.text_ids);
  prompt.text.reset();
  prompt.ids = {5, 0, 2147483647};
  prompt.own.max_new_tokens = 9;
  back = Prompt::deserialize(prompt.serialize());
  EXPECT_FALSE(back.text);
  EXPECT_EQ(back.ids, prompt.ids);
  EXPECT_EQ(back.own.max_new_tokens, 9);
  EXPECT_FALSE(back.no_special_tokens);
  prompt.no_special_tokens = true;
  prompt.chat_hash = "0123456789abcdef";
  back = Prompt::deserialize(prompt.serialize());
  EXPECT_TRUE(back.no_special_tokens);
  EXPECT_EQ(back.chat_hash, prompt.chat_hash);
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
  EXPECT_THAT(refusal(R"({"messages": [{"role": "user", "content": "a"}]})"),
              HasSubstr("need a model with a chat template"));
  EXPECT_THAT(refusal(R"({"messages": [{"role": "user"}], "prompt": "a"})"),
              HasSubstr("more than one of"));
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

TEST(Prompt, RefusesDamagedBytes) {
  Prompt prompt;
  prompt.ids = {1, 2, 3};
  prompt.text_ids = {4, 5};
  const std::string bytes = prompt.serialize();
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_THROW(Prompt::deserialize(bytes.substr(0, length)), Error) << length;
  }
  EXPECT_THROW(Prompt::deserialize(bytes + 'x'), Error);
  EXPECT_THROW(Prompt::deserialize("R" + bytes.substr(1)), Error);
  std::string huge = bytes;
  huge.replace(9, 8, 8, '\xff');  // the length of the id
  EXPECT_THROW(Prompt::deserialize(huge), Error);
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
