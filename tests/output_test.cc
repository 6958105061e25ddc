#include "engine/output.h"

#include <gtest/gtest.h>

#include <string>

namespace zi {
namespace {

const std::string kPrompt = "a\x1b[2J";
const std::string kAnswer = "one\n\ttwo\x07\r\u009b!";

std::string printed(bool terminal, bool scored) {
  ::testing::internal::CaptureStdout();
  ConsoleSink sink(terminal);
  Result result;
  result.prompt = kPrompt;
  result.text = kAnswer;
  result.token_ids = {1, 2};
  result.finish_reason = "eos";
  if (scored) result.token_logprobs.emplace();
  if (sink.streams() && !scored) {
    sink.started(0, 0, kPrompt);
    sink.told(0, {.text = kAnswer, .new_tokens = 2, .logprobs = {}, .prompt_logprobs = {}});
  }
  sink.finished(result);
  return ::testing::internal::GetCapturedStdout();
}

TEST(ConsoleSink, ShowsATerminalNothingThatItWouldObey) {
  EXPECT_EQ(printed(true, false),
            "[prompt 0, rank 0] a\uFFFD[2Jone\n\ttwo\uFFFD\uFFFD\uFFFD!  (2 tokens, eos)\n");
  EXPECT_EQ(printed(true, true).find('\x1b'), std::string::npos);
}

TEST(ConsoleSink, HandsOnTheTextAsItIsWhereThereIsNoTerminal) {
  EXPECT_EQ(printed(false, false),
            "[prompt 0, rank 0] " + kPrompt + kAnswer + "  (2 tokens, eos)\n");
  EXPECT_NE(printed(false, true).find(kPrompt), std::string::npos);
}

}  // namespace
}  // namespace zi
