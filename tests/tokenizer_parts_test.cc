// The parts of a tokenizer.json around its model, each by a small tokenizer over characters. What
// they should give was compared with Hugging Face tokenizers 0.23.3 (tokenizer_reference_test.cc
// does so at large).

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "text/tokenizer.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Ids = std::vector<std::int32_t>;

const json kReplace = {{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}};
const json kStrip = {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}};
const json kByteFallback = {{"type", "ByteFallback"}};
const json kFuse = {{"type", "Fuse"}};

json sequence(const char* key, const std::vector<json>& parts) {
  return {{"type", "Sequence"}, {key, parts}};
}

/// `<unk>` is 0, the bytes of "é" 1 and 2, `<s>` and `</s>` 3 and 4, then characters and merges.
json small_json() {
  json vocabulary = {{"<unk>", 0}, {"<0xC3>", 1}, {"<0xA9>", 2}, {"<s>", 3}, {"</s>", 4}};
  const auto add = [&](const std::string& token) { vocabulary[token] = vocabulary.size(); };
  for (const char* token : {"▁", "a", "b", "c", "1", "2", "-", "ç", "ab", "▁a", "▁ab", "<", ">"}) {
    add(token);
  }
  return {{"added_tokens", json::array()},
          {"normalizer", nullptr},
          {"pre_tokenizer", nullptr},
          {"post_processor", nullptr},
          {"decoder", kFuse},
          {"model",
           {{"type", "BPE"},
            {"unk_token", "<unk>"},
            {"fuse_unk", false},
            {"byte_fallback", true},
            {"vocab", vocabulary},
            {"merges", {"a b", "▁ ab", "▁ a"}}}}};
}

Tokenizer small(const std::function<void(json&)>& change) {
  json file = small_json();
  change(file);
  return Tokenizer::parse({.tokenizer = {"small.json", file.dump()}});
}

Tokenizer with(const char* key, const json& part) {
  return small([&](json& file) { file[key] = part; });
}

std::string part_refusal(const std::function<void(json&)>& change) {
  try {
    small(change);
  } catch (const CheckpointError& error) {
    return error.what();
  }
  return "accepted";
}

std::vector<std::string> tokens(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<std::string> out;
  for (const std::int32_t id : tokenizer.encode(text)) out.emplace_back(tokenizer.token_text(id));
  return out;
}

Ids ids(const Tokenizer& tokenizer, const std::vector<std::string>& names) {
  Ids out;
  for (const std::string& name : names) {
    std::int32_t id = 0;
    while (id < tokenizer.size() && tokenizer.token_text(id) != name) ++id;
    EXPECT_LT(id, tokenizer.size()) << name;
    out.push_back(id);
  }
  return out;
}

std::string decoded(const Tokenizer& tokenizer, const std::vector<std::string>& names) {
  const Ids list = ids(tokenizer, names);
  return tokenizer.decode(list);
}

TEST(Normalizer, RunsItsStepsInOrder) {
  const json prepend = {{"type", "Prepend"}, {"prepend", "▁"}};
  const json replace = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}};
  const Tokenizer llama = with("normalizer", sequence("normalizers", {prepend, replace}));
  EXPECT_THAT(tokens(llama, "ab a"), ElementsAre("▁ab", "▁a"));
  EXPECT_THAT(tokens(llama, " a"), ElementsAre("▁", "▁a"));
  EXPECT_TRUE(llama.encode("").empty());
  const json regex = {{"type", "Replace"}, {"pattern", {{"Regex", "[0-9]+"}}}, {"content", "a"}};
  EXPECT_THAT(tokens(with("normalizer", regex), "12b"), ElementsAre("ab"));
  EXPECT_THAT(tokens(with("normalizer", {{"type", "NFC"}}), "c\u0327"), ElementsAre("ç"));
  EXPECT_THAT(tokens(with("normalizer", {{"type", "NFKC"}}), "\u2460"), ElementsAre("1"));
}

TEST(Normalizer, RefusesATextThatItBlowsUp) {
  const json twice = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aa"}};
  const Tokenizer hostile =
      with("normalizer", sequence("normalizers", std::vector<json>(30, twice)));
  EXPECT_THAT([&] { hostile.encode("aaaa"); },
              testing::ThrowsMessage<PromptError>(HasSubstr("normalizer makes more than")));
}

TEST(Normalizer, SaysHowManyBytesATokenMayCover) {
  const auto longest = [](const json& part) {
    return with("normalizer", part).longest_token_bytes().value_or(0);
  };
  const std::size_t plain = longest(nullptr);
  EXPECT_EQ(plain, std::string("<0xC3>").size());
  const auto replace = [](const char* from, const char* to) -> json {
    return {{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}};
  };
  EXPECT_EQ(longest(replace(" ", "▁")), plain);
  EXPECT_EQ(longest(replace("aaa", "a")), 3 * plain);
  EXPECT_EQ(longest(replace("a", "")), 0u) << "no limit";
  EXPECT_GE(longest({{"type", "NFC"}}), 3 * plain);
  const auto unlimited = [](const std::function<void(json&)>& change) {
    return !small(change).longest_token_bytes();
  };
  EXPECT_TRUE(unlimited([](json& f) { f["model"]["fuse_unk"] = true; }));
  EXPECT_TRUE(unlimited([](json& f) {
    f["added_tokens"] = {{{"id", 3}, {"content", "<s>"}, {"rstrip", true}}};
  }));
  EXPECT_TRUE(unlimited([](json& f) {
    f["pre_tokenizer"] = {
        {"type", "Split"}, {"pattern", {{"String", "a"}}}, {"behavior", "Removed"}};
  }));
}

TEST(PreTokenizer, PutsAMarkBeforeWordsByItsScheme) {
  const auto metaspace = [](json more) {
    json part = {{"type", "Metaspace"}, {"replacement", "▁"}};
    part.update(more);
    return small([&](json& file) {
      file["pre_tokenizer"] = part;
      file["added_tokens"] = {{{"id", 3}, {"content", "<s>"}, {"special", true}}};
    });
  };
  const char* const text = "a b<s>a";
  EXPECT_THAT(tokens(metaspace({{"prepend_scheme", "always"}}), text),
              ElementsAre("▁a", "▁", "b", "<s>", "▁a"));
  EXPECT_THAT(tokens(metaspace({{"prepend_scheme", "first"}}), text),
              ElementsAre("▁a", "▁", "b", "<s>", "a"));
  EXPECT_THAT(tokens(metaspace({{"prepend_scheme", "first"}}), "<s>a"), ElementsAre("<s>", "a"));
  EXPECT_THAT(tokens(metaspace({{"prepend_scheme", "never"}}), text),
              ElementsAre("a", "▁", "b", "<s>", "a"));
  EXPECT_THAT(tokens(metaspace({{"add_prefix_space", true}}), " a"), ElementsAre("▁a"));
  EXPECT_THAT(tokens(metaspace({{"add_prefix_space", false}}), "a"), ElementsAre("a"));
}

TEST(PreTokenizer, RefusesAFirstPieceBehindWhatMovesTheFrontOfTheText) {
  const json replace = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", ""}};
  for (const json& normalizer : {replace, json{{"type", "Prepend"}, {"prepend", "▁"}}}) {
    for (const char* scheme : {"first", "always"}) {
      const std::string message = part_refusal([&](json& file) {
        file["normalizer"] = normalizer;
        file["pre_tokenizer"] = {
            {"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", scheme}};
      });
      EXPECT_THAT(message, scheme == std::string("first")
                               ? HasSubstr("`first` is not supported behind a normalizer")
                               : HasSubstr("accepted"));
    }
  }
}

TEST(PreTokenizer, CutsBeforeEachMarkOnlyWhereItIsToSplit) {
  const auto metaspace = [](bool split) {
    return small([&](json& file) {
      file["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "▁"}, {"split", split}};
      file["model"]["vocab"]["a▁"] = 100;
      file["model"]["merges"].insert(file["model"]["merges"].begin(), "a ▁");
    });
  };
  EXPECT_THAT(tokens(metaspace(true), "a b"), ElementsAre("▁a", "▁", "b"));
  EXPECT_THAT(tokens(metaspace(false), "a b"), ElementsAre("▁", "a▁", "b"));
}

TEST(PreTokenizer, CutsDigitsOneByOneOrInRuns) {
  const auto digits = [](bool each) {
    return small([&](json& file) {
      file["pre_tokenizer"] = {{"type", "Digits"}, {"individual_digits", each}};
      for (const char* token : {"12", "a1"}) file["model"]["vocab"][token] = token[0];
      file["model"]["merges"] = {"a 1", "1 2"};
    });
  };
  EXPECT_THAT(tokens(digits(true), "a12"), ElementsAre("a", "1", "2"));
  EXPECT_THAT(tokens(digits(false), "a12"), ElementsAre("a", "12"));
}

TEST(Bpe, TakesBytesForACharacterThatHasNoToken) {
  const Tokenizer tokenizer = small([](json&) {});
  EXPECT_EQ(tokenizer.encode("aéb"), (Ids{6, 1, 2, 7}));
  EXPECT_EQ(tokenizer.encode("è"), Ids{0}) << "one of its bytes has no token";
  const Tokenizer without = small([](json& f) { f["model"]["byte_fallback"] = false; });
  EXPECT_EQ(without.encode("aé"), (Ids{6, 0}));
}

TEST(Bpe, FusesUnknownCharactersWhereItIsTold) {
  const auto tokenizer = [](bool fuse) {
    return small([&](json& f) { f["model"]["fuse_unk"] = fuse; });
  };
  EXPECT_EQ(tokenizer(false).encode("xxa"), (Ids{0, 0, 6}));
  EXPECT_EQ(tokenizer(true).encode("xxax"), (Ids{0, 6, 0}));
  EXPECT_EQ(tokenizer(true).encode("xé"), (Ids{1, 2, 0})) << "as the reference orders them";
}

TEST(Bpe, RefusesAVocabularyThatCannotSayEveryText) {
  EXPECT_THAT(part_refusal([](json& f) { f["model"]["unk_token"] = nullptr; }),
              HasSubstr("small.json: its pre_tokenizer is not ByteLevel"));
  EXPECT_THAT(part_refusal([](json& f) { f["model"]["unk_token"] = "<nothing>"; }),
              HasSubstr("\"<nothing>\""));
}

json special(const char* name) { return {{"SpecialToken", {{"id", name}, {"type_id", 0}}}}; }

json template_of(const std::vector<json>& single) {
  const auto token = [](int id) -> json { return {{"ids", {id}}}; };
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"special_tokens", {{"<s>", token(3)}, {"</s>", token(4)}}}};
}

const json kText = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};

TEST(PostProcessor, PutsSpecialTokensAroundATextOnlyWhenAsked) {
  const Tokenizer tokenizer =
      with("post_processor", template_of({special("<s>"), special("<s>"), kText, special("</s>")}));
  EXPECT_EQ(tokenizer.encode("a", true), (Ids{3, 3, 6, 4}));
  EXPECT_EQ(tokenizer.encode("a"), Ids{6});
  EXPECT_EQ(tokenizer.encode("", true), (Ids{3, 3, 4}));
}

TEST(PostProcessor, KnowsTheOlderKindsAndSequences) {
  for (const char* type : {"BertProcessing", "RobertaProcessing"}) {
    const json part = {{"type", type}, {"cls", {"<s>", 3}}, {"sep", {"</s>", 4}}};
    EXPECT_EQ(with("post_processor", part).encode("a", true), (Ids{3, 6, 4})) << type;
  }
  const json both =
      sequence("processors", {{{"type", "ByteLevel"}}, template_of({special("<s>"), kText})});
  EXPECT_EQ(with("post_processor", both).encode("a", true), (Ids{3, 6}));
}

TEST(PostProcessor, RefusesByNameWhatItCannotDo) {
  const std::vector<std::pair<std::string, json>> cases = {
      {"`single` should have the text `A` once", template_of({kText, kText})},
      {"`single` should have the text `A` once", template_of({{{"Sequence", {{"id", "B"}}}}})},
      {"`single` does not have the text", template_of({special("<s>")})},
      {"no `ids` for `<x>`", template_of({special("<x>"), kText})},
      {"adds the id 99, which no token has",
       {{"type", "BertProcessing"}, {"cls", {"x", 99}}, {"sep", {"</s>", 4}}}},
      {"`sep` is 4, not a token and its id",
       {{"type", "BertProcessing"}, {"cls", {"<s>", 3}}, {"sep", 4}}},
      {"after another one that adds tokens",
       sequence("processors", {template_of({kText}), template_of({kText})})}};
  for (const auto& [message, part] : cases) {
    EXPECT_THAT(part_refusal([&part = part](json& f) { f["post_processor"] = part; }),
                HasSubstr(message));
  }
}

TEST(Decoder, MakesTextOfMarksAndBytesAndStripsOneSpace) {
  const json llama = sequence("decoders", {kReplace, kByteFallback, kFuse, kStrip});
  const Tokenizer tokenizer = with("decoder", llama);
  const auto text = [&](const Ids& list) { return tokenizer.decode(list); };
  EXPECT_EQ(text({15, 14}), "ab a");       // `▁ab` `▁a`
  EXPECT_EQ(text({5, 14, 6}), " aa");      // only one space goes
  EXPECT_EQ(text({6, 1, 2, 14}), "aé a");  // the bytes of one character
  EXPECT_EQ(text({1, 2, 1, 6}), "\uFFFD\uFFFD\uFFFDa") << "a run of bytes counts as a whole";
  EXPECT_EQ(text({1}), "\uFFFD");
}

TEST(Decoder, StripsEachTokenWhereTheyAreNotFusedYet) {
  const Tokenizer tokenizer = with("decoder", sequence("decoders", {kReplace, kStrip, kFuse}));
  EXPECT_EQ(tokenizer.decode(Ids{15, 14}), "aba");
}

TEST(Decoder, LeavesOutTheMarkOfTheFirstTokenAlone) {
  const auto metaspace = [](const char* scheme) -> json {
    return {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", scheme}};
  };
  EXPECT_EQ(with("decoder", metaspace("always")).decode(Ids{15, 14, 5}), "ab a ");
  EXPECT_EQ(with("decoder", metaspace("never")).decode(Ids{15, 14}), " ab a");
}

TEST(Decoder, TakesTokensForBytesOnlyWhereTheyAreByteLevel) {
  // `ç` is the letter of the byte 0xE7, which is no UTF-8 alone.
  EXPECT_EQ(decoded(with("decoder", {{"type", "ByteLevel"}}), {"a"}), "a");
  EXPECT_EQ(with("decoder", {{"type", "ByteLevel"}}).decode(Ids{12}), "\uFFFD");
  EXPECT_EQ(with("decoder", kFuse).decode(Ids{12}), "ç");
}

TEST(Decoder, RefusesAnOrderThatCannotBeStreamed) {
  const auto refused = [](const std::vector<json>& parts) {
    return part_refusal([&](json& f) { f["decoder"] = sequence("decoders", parts); });
  };
  EXPECT_THAT(refused({kFuse, kReplace}), HasSubstr("decoder `Replace` after Fuse or ByteLevel"));
  EXPECT_THAT(refused({{{"type", "ByteLevel"}}, kByteFallback}), HasSubstr("`ByteFallback` after"));
  EXPECT_THAT(refused({kByteFallback, kReplace}), HasSubstr("`Replace` after ByteFallback"));
  json stop = kStrip;
  stop["stop"] = 1;
  EXPECT_THAT(refused({stop}), HasSubstr("`Strip` with `start` 1 and `stop` 1"));
}

TEST(Decoder, StreamsWhatItGivesAtOnce) {
  const Tokenizer tokenizer =
      with("decoder", sequence("decoders", {kReplace, kByteFallback, kFuse, kStrip}));
  TextStream stream(tokenizer);
  EXPECT_EQ(stream.push(5), "");  // the space that is stripped
  EXPECT_EQ(stream.push(3), "<s>");
  EXPECT_EQ(stream.push(5), " ");
  EXPECT_EQ(stream.push(1), "");
  EXPECT_EQ(stream.push(2), "") << "more bytes may follow";
  EXPECT_EQ(stream.push(6), "éa");
  EXPECT_EQ(stream.push(2), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
  EXPECT_EQ(stream.push(14), "a") << "another text";
  EXPECT_EQ(stream.finish(), "");
}

json flagged(int id, const char* content, const std::vector<const char*>& flags) {
  json token = {{"id", id}, {"content", content}, {"normalized", false}};
  for (const char* name : flags) token[name] = true;
  return token;
}

TEST(AddedTokens, TakeTheWhiteSpaceAroundThem) {
  const Tokenizer tokenizer = small([](json& f) {
    f["added_tokens"] = {flagged(18, "<l>", {"lstrip"}), flagged(19, "<r>", {"rstrip"}),
                         flagged(20, "<n>", {})};
  });
  EXPECT_EQ(tokenizer.encode("a \u3000<l>a"), (Ids{6, 18, 6}));
  EXPECT_EQ(tokenizer.encode("a<r>\n\t a"), (Ids{6, 19, 6}));
  EXPECT_EQ(tokenizer.encode("a<n> a"), (Ids{6, 20, 0, 6})) << "a space has no token";
  EXPECT_EQ(tokenizer.encode("<r> <l>"), (Ids{19, 18}));
}

TEST(AddedTokens, AreFoundInLongRunsOfWhiteSpaceInTime) {
  const Tokenizer tokenizer = small([](json& f) {
    f["added_tokens"] = json::array({flagged(18, " ", {"lstrip", "rstrip"})});
  });
  // A quadratic search would need hours.
  EXPECT_EQ(tokenizer.encode(std::string(1 << 20, ' ')).size(), std::size_t{1} << 20);
}

TEST(AddedTokens, CountAsSingleWordsOnlyBetweenOtherCharacters) {
  const Tokenizer tokenizer = small([](json& f) {
    f["added_tokens"] = {flagged(18, "abc", {"single_word"}), flagged(6, "a", {})};
  });
  EXPECT_EQ(tokenizer.encode("abc-abc"), (Ids{18, 11, 18}));
  EXPECT_EQ(tokenizer.encode("abc1"), (Ids{13, 8, 9})) << "nor is the shorter `a` looked for";
  EXPECT_EQ(tokenizer.encode("cabc"), (Ids{8, 13, 8}));
}

TEST(AddedTokens, AreFoundInNormalizedTextWhereTheySaySo) {
  const Tokenizer tokenizer = small([](json& f) {
    f["normalizer"] = {{"type", "NFC"}};
    f["added_tokens"] = {{{"id", 18}, {"content", "ac\u0327"}, {"normalized", true}},
                         {{"id", 19}, {"content", "bc\u0327"}, {"normalized", false}}};
  });
  EXPECT_EQ(tokenizer.encode("aç"), Ids{18});
  EXPECT_EQ(tokenizer.encode("ac\u0327"), Ids{18});
  EXPECT_EQ(tokenizer.encode("bç"), (Ids{7, 12}));
  EXPECT_EQ(tokenizer.encode("bc\u0327"), Ids{19});
  EXPECT_EQ(tokenizer.decode(Ids{18}), "aç") << "as it was found";
}

TEST(AddedTokens, AreRefusedWhereTheNormalizerLeavesNoWayToFindThem) {
  const auto refused = [](const json& tokens) {
    return part_refusal([&](json& f) {
      f["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", "#"}}}, {"content", ""}};
      f["added_tokens"] = tokens;
    });
  };
  const auto token = [](int id, const char* content) -> json {
    return {{"id", id}, {"content", content}, {"normalized", true}};
  };
  EXPECT_THAT(refused(json::array({token(18, "#")})),
              HasSubstr("the normalizer leaves nothing of the token `#`"));
  EXPECT_THAT(refused({token(18, "x"), token(19, "#x")}), HasSubstr("makes the same of the token"));
}

const char* const kGpt2Vocabulary = "vocab.json";

TokenizerFiles gpt2_files(const std::string& config, const std::string& merges) {
  json vocabulary;
  for (int byte = 0; byte < 256; ++byte) {
    const bool itself = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
    static int next = 256;
    if (byte == 0) next = 256;
    const int letter = itself ? byte : next++;
    std::string text;
    if (letter < 0x80) {
      text = static_cast<char>(letter);
    } else {
      text = {static_cast<char>(0xC0 | letter >> 6), static_cast<char>(0x80 | (letter & 0x3F))};
    }
    vocabulary[text] = byte;
  }
  for (const char* token : {"</s>", "Ġa", "<|endoftext|>"}) vocabulary[token] = vocabulary.size();
  TokenizerFiles files{.tokenizer = {kGpt2Vocabulary, vocabulary.dump()}};
  if (!config.empty()) files.config = TextFile{"tokenizer_config.json", config};
  files.merges = TextFile{"merges.txt", merges};
  return files;
}

constexpr const char* kOpt = R"({"add_bos_token": true, "bos_token": "</s>", "eos_token": "</s>",
                                 "unk_token": {"__type": "AddedToken", "content": "</s>"}})";

TEST(Gpt2Files, PutTheFirstTokenInFrontAsTheirConfigSays) {
  const Tokenizer opt = Tokenizer::parse(gpt2_files(kOpt, "#version: 0.2\nĠ a\n"));
  EXPECT_EQ(opt.encode("a a", true), (Ids{256, 'a', 257}));
  EXPECT_EQ(opt.encode("a a"), (Ids{'a', 257}));
  EXPECT_EQ(opt.encode("</s>"), Ids{256});
  EXPECT_EQ(opt.decode(Ids{256, 'a', 257}), "a a");
  // GPT-2 itself has no config, and its one special token is known by its name.
  const Tokenizer gpt2 = Tokenizer::parse(gpt2_files("", "#version: 0.2\r\nĠ a\r\n"));
  EXPECT_EQ(gpt2.encode("a a<|endoftext|>", true), (Ids{'a', 257, 258}));
  EXPECT_EQ(gpt2.decode(Ids{258}), "");
  EXPECT_NE(opt.fingerprint(), gpt2.fingerprint());
}

TEST(Gpt2Files, AreRefusedByNameWhereTheyAreDamaged) {
  const auto refused = [](const std::string& config, const std::string& merges) -> std::string {
    try {
      Tokenizer::parse(gpt2_files(config, merges));
    } catch (const CheckpointError& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(refused("", "Ġ a b\n"), HasSubstr("vocab.json: merge 0 is"));
  EXPECT_THAT(refused("", "q q\n"), HasSubstr("which `vocab` lacks"));
  EXPECT_THAT(refused(R"({"add_bos_token": true, "bos_token": null})", ""),
              HasSubstr("tokenizer_config.json: `add_bos_token` is true, and no file names"));
  EXPECT_THAT(refused("{", ""), HasSubstr("tokenizer_config.json"));
}

TEST(Parts, HaveLimits) {
  EXPECT_THAT(part_refusal([](json& f) {
                f["normalizer"] = sequence("normalizers", std::vector<json>(40, {{"type", "NFC"}}));
              }),
              HasSubstr("normalizer has more than 8 levels or 32 steps"));
  EXPECT_THAT(part_refusal([](json& f) {
                f["normalizer"] = {{"type", "Prepend"}, {"prepend", std::string(5000, 'x')}};
              }),
              HasSubstr("`prepend` has 5000 bytes; 1024 are the most"));
  EXPECT_THAT(part_refusal([](json& f) {
                f["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "▁▁"}};
              }),
              HasSubstr("not one character"));
  EXPECT_THAT(
      part_refusal([](json& f) {
        f["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", "x"}};
      }),
      HasSubstr("has an empty text as its pattern"));
}

TEST(Parts, EndWhereTheirOwnTokensTakeTooLong) {
  EXPECT_THAT(part_refusal([](json& f) {
                f["normalizer"] = {
                    {"type", "Replace"}, {"pattern", {{"Regex", "(x+x+)+y"}}}, {"content", "x"}};
                f["added_tokens"] = {
                    {{"id", 18}, {"content", std::string(200, 'x')}, {"normalized", true}}};
              }),
              HasSubstr("small.json: its own tokens cannot be prepared"));
}

}  // namespace
}  // namespace zi
