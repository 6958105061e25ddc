#include "text/wire.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "text/prompt.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

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

/// Where two messages of the same length differ: one byte, for a truth value.
std::size_t byte_that_differs(const std::string& one, const std::string& other) {
  EXPECT_EQ(one.size(), other.size());
  std::size_t at = 0;
  while (at < one.size() && one[at] == other[at]) ++at;
  EXPECT_EQ(one.substr(at + 1), other.substr(at + 1));
  return at;
}

TEST(Prompt, RefusesATruthValueThatIsNeitherTrueNorFalse) {
  const auto message = [](auto change) {
    Prompt prompt;
    prompt.text = "a";
    prompt.own.ignore_eos = false;
    change(prompt);
    return prompt.serialize();
  };
  const std::string plain = message([](Prompt&) {});
  for (const std::string& changed : {message([](Prompt& p) { p.stream = true; }),
                                     message([](Prompt& p) { p.no_special_tokens = true; }),
                                     message([](Prompt& p) { p.own.ignore_eos = true; })}) {
    const std::size_t at = byte_that_differs(plain, changed);
    for (const char byte : {'\x02', '\x72', '\xff'}) {
      std::string damaged = plain;
      damaged.at(at) = byte;
      EXPECT_THROW(Prompt::deserialize(damaged), Error) << at;
    }
  }
}

TEST(Wire, ReadsTruthValuesAsTheyWereWritten) {
  WireWriter out('T');
  out.put(true);
  out.put(false);
  out.put(std::optional<bool>());
  out.put(std::optional<bool>(false));
  const std::string bytes = out.take();
  WireReader in('T', bytes);
  EXPECT_TRUE(in.get<bool>());
  EXPECT_FALSE(in.get<bool>());
  const auto flag = [&] { return in.get<bool>(); };
  EXPECT_EQ(in.optional(flag), std::nullopt);
  EXPECT_EQ(in.optional(flag), false);
  in.finish();
}

}  // namespace
}  // namespace zi
