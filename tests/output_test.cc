#include "engine/output.h"

#include <gtest/gtest.h>

#include <string>

#include "zero_infer/error.h"

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

TEST(OutputEvents, SurviveTheTripBetweenRanks) {
  std::string bytes;
  append_event(bytes, {OutputEvent::Kind::kStarted, 7, 2, "a prompt"});
  append_event(bytes, {OutputEvent::Kind::kFailed, 8, 0, ""});
  const std::vector<OutputEvent> back = read_events(bytes);
  ASSERT_EQ(back.size(), 2u);
  EXPECT_EQ(back[0].kind, OutputEvent::Kind::kStarted);
  EXPECT_EQ(back[0].index, 7u);
  EXPECT_EQ(back[0].rank, 2);
  EXPECT_EQ(back[0].body, "a prompt");
  EXPECT_EQ(back[1].kind, OutputEvent::Kind::kFailed);
}

TEST(OutputEvents, RefuseDamagedBytes) {
  std::string bytes;
  append_event(bytes, {OutputEvent::Kind::kDelta, 7, 2, "text"});
  for (std::size_t length = 1; length < bytes.size(); ++length) {
    EXPECT_THROW(read_events(bytes.substr(0, length)), Error) << length;
  }
  std::string other;
  append_event(other, {OutputEvent::Kind::kFinished, 7, 2, "text"});
  std::size_t kind = 0;
  while (bytes.at(kind) == other.at(kind)) ++kind;
  for (const char byte : {'\x04', '\xff'}) {
    bytes.at(kind) = byte;
    EXPECT_THROW(read_events(bytes), Error);
  }
  bytes.at(kind + 3) = '\xff';  // the kind is less than zero
  EXPECT_THROW(read_events(bytes), Error);
}

}  // namespace
}  // namespace zi
