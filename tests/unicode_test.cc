#include "text/unicode.h"

#include <gtest/gtest.h>

#include <string>

namespace zi {
namespace {

TEST(UnicodeForm, ComposesAndDecomposesEachInItsWay) {
  // e + dot below + acute, the ligature fi, and Hangul.
  const std::string text = "e\u0301\u0323 \uFB01 \u1112\u1161\u11AB \u212B";
  EXPECT_EQ(unicode_form(text, UnicodeForm::kNfc), "\u1EB9\u0301 \uFB01 \uD55C \u00C5");
  EXPECT_EQ(unicode_form(text, UnicodeForm::kNfkc), "\u1EB9\u0301 fi \uD55C \u00C5");
  EXPECT_EQ(unicode_form("\u1EB9\u0301 \uFB01 \uD55C", UnicodeForm::kNfd),
            "e\u0323\u0301 \uFB01 \u1112\u1161\u11AB");
  EXPECT_EQ(unicode_form("\u1EB9\u0301 \uFB01 \uFDFA", UnicodeForm::kNfkd),
            "e\u0323\u0301 fi \u0635\u0644\u0649 \u0627\u0644\u0644\u0647 "
            "\u0639\u0644\u064A\u0647 \u0648\u0633\u0644\u0645");
  EXPECT_EQ(unicode_form("", UnicodeForm::kNfc), "");
}

TEST(UnicodeForm, LeavesCharactersAloneThatTheReferenceDoesNotKnow) {
  // Dives Akuru came with Unicode 13: to the reference these two are no pair.
  EXPECT_EQ(unicode_form("\U00011935\U00011930", UnicodeForm::kNfc), "\U00011935\U00011930");
  // A mark of Unicode 14 does not move, and nothing moves past it.
  EXPECT_EQ(unicode_form("a\u0301\u08CA\u0323", UnicodeForm::kNfd), "a\u0301\u08CA\u0323");
}

TEST(UnicodeForm, OrdersALongRunOfMarksInWellUnderQuadraticTime) {
  // A quadratic sort would need hours here, and the test's limit is two minutes.
  constexpr int kHalf = 1'000'000;
  std::string above;
  std::string below;
  for (int i = 0; i < kHalf; ++i) {
    above += "\u0301";
    below += "\u0323";
  }
  EXPECT_EQ(unicode_form("x" + above + below, UnicodeForm::kNfd), "x" + below + above);
}

TEST(UnicodeForm, IsTheSameForALongTextAsForItsParts) {
  std::string text;
  std::string expected;
  for (int i = 0; i < 100'000; ++i) {
    text += i % 7 == 0 ? "n\u0303" : "e\u0301\u0323";
    expected += i % 7 == 0 ? "\u00F1" : "\u1EB9\u0301";
  }
  EXPECT_EQ(unicode_form(text, UnicodeForm::kNfc), expected);
}

TEST(UnicodeProperties, KnowWhiteSpaceAndCharactersOfWords) {
  for (const std::uint32_t code : {0x09, 0x0D, 0x20, 0x85, 0xA0, 0x1680, 0x2003, 0x2029, 0x3000}) {
    EXPECT_TRUE(is_white_space(code)) << code;
  }
  for (const std::uint32_t code : {0x08, 0x0E, 0x41, 0x200B, 0x2060, 0xFEFF}) {
    EXPECT_FALSE(is_white_space(code)) << code;
  }
  // a letter, a digit, `_`, a mark, a Roman numeral, a circled letter, a joiner, Han
  for (const std::uint32_t code : {0x61, 0x39, 0x5F, 0x301, 0x2160, 0x24B6, 0x200D, 0x795E}) {
    EXPECT_TRUE(is_word(code)) << code;
  }
  for (const std::uint32_t code : {0x20, 0x2D, 0xBD, 0x2460, 0x20AC, 0x1F600}) {
    EXPECT_FALSE(is_word(code)) << code;
  }
}

}  // namespace
}  // namespace zi
