#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/utf8.h"
#include "text/tokenizer.h"

namespace zi {
namespace {

/// What comes out for each byte, and at the end.
std::vector<std::string> stream(const std::string& bytes) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  TextStream text(tokenizer);
  std::vector<std::string> out;
  for (const char byte : bytes) out.push_back(text.push(static_cast<unsigned char>(byte)));
  out.push_back(text.finish());
  return out;
}

TEST(TextStream, HoldsBackAnIncompleteCharacter) {
  EXPECT_THAT(stream("a\xF0\x9F\x98\x80!"), testing::ElementsAre("a", "", "", "", "😀", "!", ""));
}

TEST(TextStream, ReplacesEachMaximalInvalidPartOnce) {
  EXPECT_THAT(stream("\xFF"), testing::ElementsAre("\uFFFD", ""));
  EXPECT_THAT(stream("\xE2\x82"), testing::ElementsAre("", "", "\uFFFD"));
  EXPECT_THAT(stream("\xE2\x82x"), testing::ElementsAre("", "", "\uFFFDx", ""));
  EXPECT_THAT(stream("\xED\xA0\x80"), testing::ElementsAre("", "\uFFFD\uFFFD", "\uFFFD", ""))
      << "a surrogate: each byte by itself, once its lead can no longer go on";
  EXPECT_THAT(stream("\xC3\xC3\xA9"), testing::ElementsAre("", "\uFFFD", "é", ""));
}

TEST(TextStream, StartsAfreshAfterItsEnd) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  TextStream text(tokenizer);
  EXPECT_EQ(text.push(0xE2), "");
  EXPECT_EQ(text.finish(), "\uFFFD");
  EXPECT_EQ(text.finish(), "");
  EXPECT_EQ(text.push('a'), "a");
}

TEST(TextStream, GivesTheTextOfTheWholeAnswer) {
  const std::string text = "हे LORD 😀 神 e\u0301";
  const Tokenizer tokenizer =
      Tokenizer::load(std::string(ZI_TEST_DATA) + "/bloom-kjv/tokenizer.json");
  TextStream parts(tokenizer);
  std::string out;
  for (const std::int32_t id : tokenizer.encode(text)) {
    const std::string part = parts.push(id);
    EXPECT_FALSE(first_invalid_utf8(part)) << "a part of a character";
    out += part;
  }
  EXPECT_EQ(out + parts.finish(), text);
}

}  // namespace
}  // namespace zi
