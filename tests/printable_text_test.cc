#include "base/printable_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "base/utf8.h"
#include "zero_infer/log.h"

namespace zi {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(PrintableText, KeepsWhatATerminalShows) {
  for (const char* text : {"", "plain text", "Ünïcödé 神 😀",
                           "a\xC2\xA0"
                           "b"}) {
    EXPECT_EQ(printable(text), text);
  }
}

TEST(PrintableText, ReplacesWhatATerminalWouldObey) {
  EXPECT_EQ(printable("\x1b[2Jx"), "\uFFFD[2Jx");
  EXPECT_EQ(printable("a\nb\tc\rd"), "a\uFFFDb\uFFFDc\uFFFDd");
  EXPECT_EQ(printable("a\x7f"), "a\uFFFD");
  EXPECT_EQ(printable(std::string("a\0b", 3)), "a\uFFFDb");
  EXPECT_EQ(printable("\u009b31m"), "\uFFFD31m");  // CSI in one character
  EXPECT_EQ(printable("\u202eevil\u2066\u200f\u2028"), "\uFFFDevil\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(printable("\x9b"
                      "31m\xC3"),
            "\uFFFD31m\uFFFD");  // not UTF-8
}

TEST(PrintableText, KeepsTheControlCharactersThatAreAskedFor) {
  EXPECT_EQ(printable("a\n\tb\x1b\r", "\n\t"), "a\n\tb\uFFFD\uFFFD");
}

TEST(PrintableText, LeavesProseAsItIsInAnyLanguage) {
  const std::string prose =
      "one\n\ttwo \u200f\u05e9\u05dc\u05d5\u05dd\u200e \u2066x\u2069 \U0001F600";
  EXPECT_EQ(printable_prose(prose), prose);
  EXPECT_EQ(printable_prose("\x1b]0;title\x07 a\r\u009b2J\x80"),
            "\uFFFD]0;title\uFFFD a\uFFFD\uFFFD"
            "2J\uFFFD");
}

TEST(PrintableText, QuotesAreShortAndWhole) {
  EXPECT_EQ(in_quotes("a\nb"), "`a\uFFFDb`");
  EXPECT_EQ(in_quotes(std::string(120, 'x')), "`" + std::string(120, 'x') + "`");
  EXPECT_EQ(in_quotes(std::string(121, 'x')), "`" + std::string(120, 'x') + "...`");
  // Cut between characters, wherever their bytes lie.
  for (std::size_t before = 0; before < 4; ++before) {
    std::string text(before, 'x');
    while (text.size() < 200) text += "😀";
    const std::string quoted = in_quotes(text);
    EXPECT_EQ(first_invalid_utf8(quoted), std::nullopt);
    EXPECT_THAT(quoted, Not(HasSubstr("\uFFFD")));
    EXPECT_LE(quoted.size(), 120 + 5u);
  }
  EXPECT_EQ(in_quotes(std::string(200, '\x80')).substr(0, 4), "`\uFFFD");
}

TEST(Log, DoesNotHandOnWhatATerminalWouldObey) {
  set_log(LogLevel::kVerbose, "");
  ::testing::internal::CaptureStderr();
  log_info("a\x1b[31m\nb");
  log_warning("c\x1b");
  log_error("d\u009b");
  log_verbose("e\r");
  set_log(LogLevel::kNormal, "");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(),
            "a\uFFFD[31m\nb\nwarning: c\uFFFD\nerror: d\uFFFD\ne\uFFFD\n");
}

}  // namespace
}  // namespace zi
