#include "serve/terminal_chat.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "temporary_directory.h"
#include "zero_infer/error.h"

namespace zi::test {
namespace {

using ::testing::HasSubstr;

/// A conversation over a pipe, with the template `[role]text` for each message.
class TerminalChatTest : public testing::Test {
 protected:
  void SetUp() override {
    std::ofstream(directory_.path() / "chat_template.jinja")
        << "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]";
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    input_ = FileDescriptor(ends[1]);
    TerminalChat::Options options;
    options.quiet = true;
    options.own.max_new_tokens = kAsManyAsFit;
    chat_ = std::make_unique<TerminalChat>(std::make_shared<CheckpointChat>(directory_.path()),
                                           options, FileDescriptor(ends[0]));
    ::testing::internal::CaptureStdout();
  }
  void TearDown() override {
    input_ = FileDescriptor();
    chat_.reset();
    if (!shown_) ::testing::internal::GetCapturedStdout();
  }

  void type(const std::string& text) {
    ASSERT_EQ(::write(input_.get(), text.data(), text.size()), std::ssize(text));
  }
  /// The next prompt; waits for it.
  Prompt prompt() {
    for (int i = 0; i < 100; ++i) {
      std::vector<Prompt> taken = chat_->take(4, true);
      if (!taken.empty()) {
        EXPECT_EQ(taken.size(), 1u);
        return taken.front();
      }
    }
    ADD_FAILURE() << "no prompt came";
    return {};
  }
  void answer(const Prompt& prompt, const std::string& text) {
    for (const char c : text) {
      chat_->told(
          prompt.index,
          {.text = std::string(1, c), .new_tokens = 1, .logprobs = {}, .prompt_logprobs = {}});
    }
    Result result;
    result.index = prompt.index;
    result.text = text;
    result.finish_reason = "eos";
    chat_->finished(result);
  }
  std::string shown() {
    shown_ = true;
    return ::testing::internal::GetCapturedStdout();
  }

  TemporaryDirectory directory_;
  FileDescriptor input_;
  std::unique_ptr<TerminalChat> chat_;
  bool shown_ = false;
};

TEST_F(TerminalChatTest, EachPromptHasTheConversationSoFar) {
  type("Hi\n");
  const Prompt first = prompt();
  EXPECT_EQ(first.text, "[user]Hi[assistant]");
  EXPECT_TRUE(first.stream);
  EXPECT_TRUE(first.no_special_tokens);
  EXPECT_EQ(first.own.max_new_tokens, kAsManyAsFit);
  answer(first, "Hello.");
  type("And?\n");
  EXPECT_EQ(prompt().text, "[user]Hi[assistant]Hello.[user]And?[assistant]");
  EXPECT_EQ(shown(), "Hello.\n");
}

TEST_F(TerminalChatTest, TakesOneMessageAtATime) {
  type("a\nb\n");
  const Prompt first = prompt();
  EXPECT_TRUE(chat_->take(4, true).empty()) << "while the first is answered";
  answer(first, "A");
  EXPECT_EQ(prompt().text, "[user]a[assistant]A[user]b[assistant]");
}

TEST_F(TerminalChatTest, ObeysCommandsAndContinuesLines) {
  type("first\n");
  answer(prompt(), "1");
  type("/system Be brief.\n\nsecond\\\nline\n");
  const Prompt second = prompt();
  EXPECT_EQ(second.text, "[system]Be brief.[user]second\nline[assistant]");
  answer(second, "2");
  type("/new\nthird\n");
  EXPECT_EQ(prompt().text, "[user]third[assistant]");
}

TEST_F(TerminalChatTest, AnInterruptedAnswerIsCancelledAndStaysInTheConversationAsFarAsItCame) {
  EXPECT_FALSE(chat_->interrupt()) << "nothing is being answered";
  type("a\n");
  const Prompt first = prompt();
  chat_->told(first.index,
              {.text = "Yes, b", .new_tokens = 3, .logprobs = {}, .prompt_logprobs = {}});
  EXPECT_TRUE(chat_->interrupt());
  EXPECT_THAT(chat_->cancelled(), testing::ElementsAre(first.index));
  EXPECT_TRUE(chat_->cancelled().empty()) << "told once";
  chat_->told(first.index, {.text = "ut", .new_tokens = 1, .logprobs = {}, .prompt_logprobs = {}});
  type("go on\n");
  EXPECT_EQ(prompt().text, "[user]a[assistant]Yes, b[user]go on[assistant]");
  EXPECT_EQ(shown(), "Yes, b\n");
}

TEST_F(TerminalChatTest, AFailedMessageIsNotInTheConversation) {
  type("a\n");
  chat_->failed(prompt().index, "too long");
  type("b\n");
  EXPECT_EQ(prompt().text, "[user]b[assistant]");
}

TEST_F(TerminalChatTest, EndsWithItsInputOrByCommand) {
  EXPECT_FALSE(chat_->exhausted());
  type("a");
  input_ = FileDescriptor();  // the last line has no end
  const Prompt last = prompt();
  EXPECT_EQ(last.text, "[user]a[assistant]");
  answer(last, "A");
  chat_->wait();
  EXPECT_TRUE(chat_->exhausted());
}

TEST_F(TerminalChatTest, LeavesByCommandWhateverElseWasTyped) {
  type("/exit\nnot this\n");
  for (int i = 0; i < 100 && !chat_->exhausted(); ++i) EXPECT_TRUE(chat_->take(1, true).empty());
  EXPECT_TRUE(chat_->exhausted());
}

TEST_F(TerminalChatTest, PassesOverWhatIsNoUtf8) {
  ::testing::internal::CaptureStderr();
  type("a\xff\nb\n");
  EXPECT_EQ(prompt().text, "[user]b[assistant]");
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("invalid UTF-8 at byte 1"));
}

TEST(TerminalChat, NeedsATemplate) {
  const TemporaryDirectory directory;
  EXPECT_THROW(TerminalChat(std::make_shared<CheckpointChat>(directory.path()), {},
                            FileDescriptor(::dup(0))),
               CheckpointError);
}

}  // namespace
}  // namespace zi::test
