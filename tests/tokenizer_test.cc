#include "text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>

#include "zero_infer/error.h"

namespace zi {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using Ids = std::vector<std::int32_t>;

const std::string kModel = std::string(ZI_TEST_DATA) + "/bloom-kjv/";

json read_json(const std::string& path) { return json::parse(std::ifstream(path)); }

const Tokenizer& bundled() {
  static const Tokenizer tokenizer = Tokenizer::load(kModel + "tokenizer.json");
  return tokenizer;
}

/// The bundled tokenizer.json, but of its tokens only the special ones and the single bytes.
const json& trimmed_json() {
  static const json trimmed = [] {
    json file = read_json(kModel + "tokenizer.json");
    json vocabulary;
    for (const auto& [token, id] : file["model"]["vocab"].items()) {
      if (id < 4 + 256) vocabulary[token] = id;
    }
    file["model"]["vocab"] = vocabulary;
    file["model"]["merges"] = json::array();
    return file;
  }();
  return trimmed;
}

/// A tokenizer of the trimmed tokenizer.json after `change`.
Tokenizer changed(const std::function<void(json&)>& change) {
  json file = trimmed_json();
  change(file);
  return Tokenizer::parse({.tokenizer = {"changed.json", file.dump()}});
}

std::string refusal(const std::function<void(json&)>& change) {
  try {
    changed(change);
  } catch (const CheckpointError& error) {
    return error.what();
  }
  return "accepted";
}

/// The same without a split by a pattern, with merges given as pairs of byte-level text.
Tokenizer small(
    const std::vector<std::pair<std::string, std::string>>& merges,
    const std::function<void(json&)>& change = [](json&) {}) {
  return changed([&](json& file) {
    for (const auto& [left, right] : merges) {
      file["model"]["merges"].push_back({left, right});
      json& vocabulary = file["model"]["vocab"];
      if (!vocabulary.contains(left + right)) vocabulary[left + right] = vocabulary.size();
    }
    file["pre_tokenizer"] = {
        {"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
    change(file);
  });
}

/// The texts of the tokens, for tests that do not care for ids.
std::vector<std::string> pieces(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<std::string> out;
  for (const std::int32_t id : tokenizer.encode(text)) out.emplace_back(tokenizer.token_bytes(id));
  return out;
}

TEST(Tokenizer, EncodesEveryGoldenPromptAndDecodesEveryGoldenAnswer) {
  const json golden = read_json(kModel + "golden.json");
  ASSERT_FALSE(golden.empty());
  for (const json& prompt : golden) {
    for (const char* dtype : {"float32", "bfloat16"}) {
      const json& expected = prompt[dtype];
      const auto text = prompt["prompt"].get<std::string>();
      EXPECT_EQ(bundled().encode(text), expected["prompt_ids"].get<Ids>()) << text;
      EXPECT_EQ(bundled().decode(expected["greedy_ids"].get<Ids>()), expected["text"]) << text;
      EXPECT_EQ(bundled().decode(expected["prompt_ids"].get<Ids>()), text);
    }
  }
}

TEST(Tokenizer, GivesTheIdsOfTheReferenceForUnusualText) {
  // Reference ids: Hugging Face tokenizers 0.23, encode(text, add_special_tokens=False).
  const std::vector<std::pair<std::string, Ids>> cases = {
      {"a", {68}},
      {" ", {224}},
      {"  a", {224, 263}},
      {"the LORD, the God", {260, 72, 346, 15, 262, 392}},
      {"(thou)|[him]", {11, 260, 276, 12, 95, 62, 75, 316, 64}},
      {"((", {11, 11}},
      {"]]", {64, 64}},
      {"a[b]c", {68, 62, 69, 64, 70}},
      {"a |b", {68, 224, 95, 69}},
      {"x\012\012y", {91, 202, 202, 92}},
      {"\015\012", {205, 202}},
      {"\011tab", {201, 87, 477}},
      {"\302\240nbsp", {130, 258, 81, 69, 1240}},
      {"wide\343\200\200space", {90, 608, 163, 226, 226, 1240, 1894}},
      {"\342\200\250line", {162, 226, 105, 79, 435}},
      {"zero\342\200\213width", {2219, 82, 162, 226, 237, 90, 319, 260}},
      {"Yes!\?... no\342\200\246", {60, 285, 4, 34, 17, 17, 17, 324, 162, 226, 103}},
      {"\343\200\202\357\274\214\343\200\201\340\245\244\333\224\330\214",
       {163, 226, 228, 175, 124, 238, 163, 226, 227, 160, 102, 101, 155, 246, 152, 238}},
      {"\347\245\236\343\200\201\346\233\260\343\201\217\343\200\202",
       {167, 102, 256, 163, 226, 227, 166, 253, 112, 163, 227, 241, 163, 226, 228}},
      {"\331\202\330\247\331\204\330\214", {153, 228, 152, 104, 153, 230, 152, 238}},
      {"\340\244\271\340\245\207 "
       "\340\244\252\340\244\260\340\244\256\340\245\207\340\244\266\340\245\215\340\244\265\340"
       "\244\260\340\245\244",
       {160, 101, 121, 160, 102, 233, 224, 160, 101, 107, 160, 101, 112, 160, 101, 110, 160,
        102, 233, 160, 101, 118, 160, 102, 239, 160, 101, 117, 160, 101, 112, 160, 102, 101}},
      {"e\314\201\314\210", {72, 140, 227, 140, 234}},
      {"\303\251", {131, 106}},
      {"\360\237\230\200", {176, 257, 250, 226}},
      {"\360\237\221\251\342\200\215\360\237\221\251\342\200\215\360\237\221\247",
       {176, 257, 243, 106, 162, 226, 239, 176, 257, 243, 106, 162, 226, 239, 176, 257, 243, 104}},
      {"<s>In the beginning</s>", {1, 3495, 262, 2099, 2}},
      {"a<pad>b<unk>", {68, 3, 69, 0}},
      {" <s> ", {224, 1, 224}},
      {"<s", {31, 86}},
      {"<<s>>", {31, 1, 33}},
      {"</s></s>", {2, 2}},
      {std::string("\000nul", 4), {192, 81, 690}},
      {"\177", {225}},
      {"\357\273\277bom", {175, 123, 127, 69, 307}},
      {"aaaaaaaaaaaaaaaaaaaaaaaa", {68, 68, 68, 68, 68, 68, 68, 68, 68, 68, 68, 68,
                                    68, 68, 68, 68, 68, 68, 68, 68, 68, 68, 68, 68}},
      {"        ", {224, 224, 224, 224, 224, 224, 224, 224}},
      {"1234567890", {20, 21, 22, 23, 24, 25, 26, 27, 28, 19}},
      {"don't they'll", {71, 287, 10, 87, 339, 10, 279}},
      {"\304\240", {132, 258}},
      {"\364\217\277\277", {180, 241, 127, 127}},
      {"\356\200\200", {174, 226, 226}},
      {"And it came to pass", {1066, 360, 479, 293, 605}},
      {"ANDITCAMETOPASS", {36, 49, 39, 44, 55, 38, 36, 48, 40, 55, 50, 51, 36, 54, 54}},
      {"a,b.c!d\?e", {68, 15, 69, 17, 70, 4, 71, 34, 72}},
  };
  for (const auto& [text, ids] : cases) EXPECT_EQ(bundled().encode(text), ids) << text;
}

TEST(Tokenizer, GivesNoIdsForAnEmptyText) { EXPECT_TRUE(bundled().encode("").empty()); }

TEST(Tokenizer, HasASizeBeyondTheLargestId) {
  EXPECT_EQ(bundled().size(), 4096);
  EXPECT_EQ(changed([](json& file) { file["model"]["vocab"]["far"] = 5000; }).size(), 5001);
}

TEST(Tokenizer, GivesNothingForIdsWithoutAToken) {
  EXPECT_EQ(bundled().decode(Ids{-1, 4096, 2147483647}), "");
  const Tokenizer far = changed([](json& file) { file["model"]["vocab"]["far"] = 5000; });
  EXPECT_EQ(far.decode(Ids{4999, 5000}), "far");
}

TEST(Tokenizer, KnowsTheTextOfEveryToken) {
  EXPECT_EQ(bundled().token_text(1), "<s>");
  EXPECT_EQ(bundled().token_text(262), bundled().token_bytes(262));
  EXPECT_EQ(bundled().token_text(-1), "");
  EXPECT_EQ(bundled().token_text(4096), "");
}

TEST(Tokenizer, KnowsTheMostBytesThatATokenStandsFor) {
  std::size_t most = 0;
  for (std::int32_t id = 0; id < bundled().size(); ++id) {
    most = std::max(most, bundled().token_text(id).size());
  }
  EXPECT_EQ(bundled().longest_token_bytes(), most);
  EXPECT_EQ(Tokenizer::bytes().longest_token_bytes(), 1u);
  // A special token has no bytes in a decoded text, but it has in a prompt.
  const std::string long_one(1000, '#');
  const Tokenizer special = changed([&](json& file) {
    file["added_tokens"].push_back({{"id", 260}, {"content", long_one}, {"special", true}});
  });
  EXPECT_EQ(special.encode(long_one), Ids{260});
  EXPECT_EQ(special.longest_token_bytes(), 1000u);
}

TEST(Tokenizer, LeavesSpecialTokensOutOfText) {
  EXPECT_EQ(bundled().decode(Ids{1, 3495, 2}), "In");
  EXPECT_EQ(bundled().token_bytes(1), "");
}

TEST(Tokenizer, NamesTheOffsetOfInvalidUtf8) {
  const std::vector<std::pair<std::string, int>> cases = {{"abc\xff", 3},
                                                          {"\x80", 0},
                                                          {"a\xC3", 1},
                                                          {"a\xC0\x80", 1},
                                                          {"\xED\xA0\x80", 0},
                                                          {"ab\xE2\x82", 2},
                                                          {"\xF4\x90\x80\x80", 0},
                                                          {"\xE0\x9F\xBF", 0},
                                                          {"\xF0\x8F\xBF\xBF", 0},
                                                          {"\xF5\x80\x80\x80", 0},
                                                          {"\xC3\xA9\xE2\x28\xA1", 2}};
  for (const auto& [text, offset] : cases) {
    try {
      bundled().encode(text);
      ADD_FAILURE() << "accepted invalid UTF-8 at " << offset;
    } catch (const PromptError& error) {
      EXPECT_THAT(error.what(), HasSubstr("at byte " + std::to_string(offset) + " "));
    }
  }
}

TEST(Tokenizer, EncodesAMegabyteWithoutASpaceInWellUnderQuadraticTime) {
  // A quadratic encoder would need hours here, and the test's limit is a minute.
  std::string text;
  for (std::uint32_t i = 0, x = 1; i < 1 << 20; ++i) {
    x = x * 1664525u + 1013904223u;
    text += static_cast<char>('a' + (x >> 24) % 26);
  }
  const Ids ids = bundled().encode(text);
  EXPECT_EQ(bundled().decode(ids), text);
}

TEST(Tokenizer, EncodesFromManyThreadsAtOnce) {
  const std::string text = "And it came to pass, that the LORD (he) said | so: ";
  const Ids expected = bundled().encode(text);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4);
  for (auto& count : wrong) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) count += bundled().encode(text) != expected;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_THAT(wrong, testing::Each(0));
}

TEST(Tokenizer, ReadsMergesAsStringsToo) {
  json file = read_json(kModel + "tokenizer.json");
  for (json& merge : file["model"]["merges"]) {
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  }
  const Tokenizer strings = Tokenizer::parse({.tokenizer = {"strings.json", file.dump()}});
  const std::string text = "In the beginning God created the heaven and the earth.";
  EXPECT_EQ(strings.encode(text), bundled().encode(text));
}

TEST(Tokenizer, MergesByRankAndThenFromTheLeft) {
  const Tokenizer by_rank = small({{"b", "c"}, {"a", "b"}});
  EXPECT_THAT(pieces(by_rank, "abc"), testing::ElementsAre("a", "bc"));
  const Tokenizer from_left = small({{"a", "a"}});
  EXPECT_THAT(pieces(from_left, "aaaaa"), testing::ElementsAre("aa", "aa", "a"));
  // The merge of (aa, a) becomes possible only by the first.
  const Tokenizer chained = small({{"a", "a"}, {"aa", "a"}, {"x", "y"}});
  EXPECT_THAT(pieces(chained, "aaaxy"), testing::ElementsAre("aaa", "xy"));
}

TEST(Tokenizer, TakesWholePiecesFirstWhereMergesAreIgnored) {
  const auto add = [](json& file) { file["model"]["vocab"]["abc"] = 300; };
  EXPECT_THAT(pieces(small({}, add), "abc"), testing::ElementsAre("a", "b", "c"));
  const Tokenizer whole = small({}, [&](json& file) {
    add(file);
    file["model"]["ignore_merges"] = true;
  });
  EXPECT_THAT(pieces(whole, "abc"), testing::ElementsAre("abc"));
  EXPECT_THAT(pieces(whole, "abcd"), testing::ElementsAre("a", "b", "c", "d"));
}

/// A tokenizer that merges only across the places where text may be cut shows where it is cut.
TEST(Tokenizer, CutsWordsLikeGpt2WithByteLevelAlone) {
  const auto split = [](json& file) {
    file["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", true}};
    file["model"]["ignore_merges"] = true;
    for (const char* word : {"ĠHe", "'s", "Ġgone", "ĠĠ", "12", "Ġ12", "!?", "He"}) {
      file["model"]["vocab"][word] = file["model"]["vocab"].size();
    }
  };
  const Tokenizer tokenizer = small({}, split);
  EXPECT_THAT(pieces(tokenizer, "He's gone   12!?"),
              testing::ElementsAre(" He", "'s", " gone", "  ", " 12", "!?"));
  EXPECT_THAT(pieces(tokenizer, " He"), testing::ElementsAre(" He"));
}

TEST(Tokenizer, SplitsByALiteralText) {
  const auto split = [](json& file) {
    const json literal = {
        {"type", "Split"}, {"pattern", {{"String", "--"}}}, {"behavior", "Isolated"}};
    file["pre_tokenizer"] = {{"type", "Sequence"},
                             {"pretokenizers", {literal, file["pre_tokenizer"]}}};
  };
  const std::vector<std::pair<std::string, std::string>> merges = {
      {"-", "-"}, {"a", "--"}, {"--", "b"}};
  EXPECT_THAT(pieces(small(merges), "a--b"), testing::ElementsAre("a--", "b"));
  EXPECT_THAT(pieces(small(merges, split), "a--b"), testing::ElementsAre("a", "--", "b"));
}

TEST(Tokenizer, EndsWithAnErrorWhereAPatternBacktracksWithoutEnd) {
  const Tokenizer hostile = changed([](json& file) {
    file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(x+x+)+y";
  });
  EXPECT_FALSE(hostile.encode("no x").empty());
  EXPECT_THROW(hostile.encode(std::string(200, 'x')), PromptError);
}

TEST(Tokenizer, FindsTheLongestAddedTokenAndVerbatimOnesFirst) {
  const Tokenizer tokenizer = changed([](json& file) {
    file["added_tokens"].push_back({{"id", 260}, {"content", "<go"}, {"normalized", false}});
    file["added_tokens"].push_back({{"id", 261}, {"content", "<go>"}, {"normalized", false}});
    file["added_tokens"].push_back({{"id", 262}, {"content", "zq<go>"}, {"normalized", true}});
    file["added_tokens"].push_back({{"id", 263}, {"content", "q q"}, {"normalized", true}});
  });
  EXPECT_EQ(tokenizer.encode("<go><go<go>"), (Ids{261, 260, 261}));
  EXPECT_EQ(tokenizer.encode("zq<go>").back(), 261);
  EXPECT_EQ(tokenizer.encode("q q</s>"), (Ids{263, 2}));
  EXPECT_EQ(tokenizer.decode(Ids{263, 260}), "q q<go");  // not special: part of the text
}

TEST(Tokenizer, RefusesByNameWhatWouldChangeIds) {
  const std::vector<std::pair<std::string, std::function<void(json&)>>> cases = {
      {"normalizer `Lowercase`",
       [](json& f) {
         f["normalizer"] = {{"type", "Lowercase"}};
       }},
      {"model \"WordPiece\"", [](json& f) { f["model"]["type"] = "WordPiece"; }},
      {"`dropout` 0.1", [](json& f) { f["model"]["dropout"] = 0.1; }},
      {"`end_of_word_suffix` \"</w>\"", [](json& f) { f["model"]["end_of_word_suffix"] = "</w>"; }},
      {"`continuing_subword_prefix`",
       [](json& f) { f["model"]["continuing_subword_prefix"] = "##"; }},
      {"pre_tokenizer `Whitespace`",
       [](json& f) {
         f["pre_tokenizer"] = {{"type", "Whitespace"}};
       }},
      {"not ByteLevel", [](json& f) { f["pre_tokenizer"]["pretokenizers"].erase(1); }},
      {"`Split` after ByteLevel",
       [](json& f) {
         std::swap(f["pre_tokenizer"]["pretokenizers"][0], f["pre_tokenizer"]["pretokenizers"][1]);
       }},
      {"behavior \"Doubled\"",
       [](json& f) { f["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Doubled"; }},
      {"`[z-` is not",
       [](json& f) { f["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "[z-"; }},
      {"post_processor `Pairs`",
       [](json& f) {
         f["post_processor"] = {{"type", "Pairs"}};
       }},
      {"decoder `WordPiece`",
       [](json& f) {
         f["decoder"] = {{"type", "WordPiece"}};
       }},
      {"decoder `null`", [](json& f) { f["decoder"] = nullptr; }},
  };
  for (const auto& [message, change] : cases) {
    EXPECT_THAT(refusal(change), testing::AllOf(HasSubstr(message), HasSubstr("changed.json: ")));
  }
}

TEST(Tokenizer,
     LeavesOutOfATextTheControlCharactersThatAByteLevelVocabularyLacksAsTheReferenceDoes) {
  const Tokenizer tokenizer = changed([](json& f) {
    for (const char* byte : {"Ą", "Ć", "ñ"}) f["model"]["vocab"].erase(byte);
  });
  EXPECT_EQ(tokenizer.encode("a\x04\x06z"), tokenizer.encode("az"));
  EXPECT_EQ(tokenizer.encode("\x04"), Ids());
  EXPECT_EQ(tokenizer.encode("\U00040000").size(), 3u) << "the reference leaves out single bytes";
  EXPECT_EQ(tokenizer.longest_token_bytes(), std::nullopt);
}

TEST(Tokenizer, NamesWhatIsInconsistent) {
  const std::vector<std::pair<std::string, std::function<void(json&)>>> cases = {
      {"no `model`", [](json& f) { f.erase("model"); }},
      {"no `vocab`", [](json& f) { f["model"].erase("vocab"); }},
      {"no `merges`", [](json& f) { f["model"].erase("merges"); }},
      {"no token for the byte 0xf4", [](json& f) { f["model"]["vocab"].erase("ô"); }},
      {"no token for the byte 0x20", [](json& f) { f["model"]["vocab"].erase("Ġ"); }},
      {"no token for the byte 0x0a", [](json& f) { f["model"]["vocab"].erase("Ċ"); }},
      {"no token for the byte 0x04",
       [](json& f) {
         f["model"]["vocab"].erase("Ą");
         f["model"]["unk_token"] = "<unk>";
       }},
      {"the id 5 is given twice", [](json& f) { f["model"]["vocab"]["the"] = 5; }},
      {"has the id -1", [](json& f) { f["model"]["vocab"]["the"] = -1; }},
      {"has the id 1.5", [](json& f) { f["model"]["vocab"]["the"] = 1.5; }},
      {"has the id 4000000000", [](json& f) { f["model"]["vocab"]["the"] = 4000000000; }},
      {"merge 0 needs `qqq",
       [](json& f) {
         f["model"]["merges"] = json::array({json::array({"qqq", "a"})});
       }},
      {"merge 1 is",
       [](json& f) {
         f["model"]["merges"] = {"#version: 1", "a b c"};
       }},
      {"merge 1 is",
       [](json& f) {
         f["model"]["merges"] = {"#version: 1", 7};
       }},
      {"is there twice", [](json& f) { f["added_tokens"][1]["content"] = "<unk>"; }},
      {"has the id 9, but 0 in tokenizer.json", [](json& f) { f["added_tokens"][0]["id"] = 9; }},
      {"no `content`", [](json& f) { f["added_tokens"][0] = 3; }},
      {"of `added_tokens` with the id 0 is empty",
       [](json& f) { f["added_tokens"][0]["content"] = ""; }},
      {"the `content` of an added token is 5",
       [](json& f) { f["added_tokens"][0]["content"] = 5; }},
      {"`byte_fallback` is \"yes\"", [](json& f) { f["model"]["byte_fallback"] = "yes"; }},
      {"`unk_token` is 5", [](json& f) { f["model"]["unk_token"] = 5; }},
      {"its `version` is \"9\"", [](json& f) { f["version"] = "9"; }},
      {"`<far>` has the id 5000, but 260 is the next free one",
       [](json& f) {
         f["added_tokens"].push_back({{"id", 5000}, {"content", "<far>"}});
       }},
      {"`normalized` is 1, not", [](json& f) { f["added_tokens"][0]["normalized"] = 1; }},
      {"has no `type`", [](json& f) { f["pre_tokenizer"].erase("type"); }},
      {"more than 8 levels",
       [](json& f) {
         for (int i = 0; i < 9; ++i) {
           f["pre_tokenizer"] = {{"type", "Sequence"},
                                 {"pretokenizers", json::array({f["pre_tokenizer"]})}};
         }
       }},
  };
  for (const auto& [message, change] : cases) EXPECT_THAT(refusal(change), HasSubstr(message));
}

TEST(Tokenizer, NeedsNoTokensForBytesThatNoTextHas) {
  const Tokenizer tokenizer = changed([](json& f) {
    for (const char* letter : {"À", "Á", "õ", "ÿ"}) f["model"]["vocab"].erase(letter);
  });
  EXPECT_EQ(tokenizer.encode("\u00FF"), bundled().encode("\u00FF"));
}

TEST(Tokenizer, NamesAFileThatIsMissingOrNotJson) {
  const auto message = [](const std::filesystem::path& path) -> std::string {
    try {
      Tokenizer::load(path);
    } catch (const CheckpointError& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(message("/nonexistent/tokenizer.json"),
              HasSubstr("/nonexistent/tokenizer.json does not exist"));
  EXPECT_THAT(message("/"), HasSubstr("not a file"));
  EXPECT_THAT(message(kModel + "model-00003-of-00003.safetensors"), HasSubstr("not valid JSON"));
  for (const std::string& text : {std::string("[]"), std::string(1 << 20, '[')}) {
    EXPECT_THROW(Tokenizer::parse({.tokenizer = {"x", text}}), CheckpointError);
  }
  EXPECT_THAT(
      [] {
        Tokenizer::parse({.tokenizer = {"x", R"({"model": {}, "model": {}})"}});
      },
      ThrowsMessage<CheckpointError>(HasSubstr("x: `model` is there twice")));
  EXPECT_THAT(
      [] {
        Tokenizer::parse({.tokenizer = {"x", std::string(1 << 20, '[')}});
      },
      ThrowsMessage<CheckpointError>(HasSubstr("nested more than 64 deep")));
}

TEST(Tokenizer, HasOneTokenAByteWithoutAFile) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  EXPECT_EQ(tokenizer.size(), 256);
  EXPECT_EQ(tokenizer.encode("a é"), (Ids{97, 32, 0xC3, 0xA9}));
  EXPECT_EQ(tokenizer.decode(Ids{97, 0xC3, 0xA9, 256}), "aé");
  EXPECT_THROW(tokenizer.encode("\xff"), PromptError);
}

TEST(TokenizerFingerprint, DiffersWithEveryByteOfTheFile) {
  const std::uint64_t fingerprint = bundled().fingerprint();
  EXPECT_EQ(Tokenizer::load(kModel + "tokenizer.json").fingerprint(), fingerprint);
  EXPECT_NE(fingerprint, Tokenizer::bytes().fingerprint());
  // As many tokens, two of them under each other's ids.
  json file = read_json(kModel + "tokenizer.json");
  const std::string text = file.dump();
  EXPECT_EQ(Tokenizer::parse({.tokenizer = {"a", text}}).fingerprint(),
            Tokenizer::parse({.tokenizer = {"b", text}}).fingerprint());
  json& vocabulary = file["model"]["vocab"];
  const auto first = vocabulary.begin();
  std::swap(first.value(), std::next(first).value());
  const Tokenizer swapped = Tokenizer::parse({.tokenizer = {"swapped", file.dump()}});
  EXPECT_EQ(swapped.size(), bundled().size());
  EXPECT_NE(swapped.fingerprint(), Tokenizer::parse({.tokenizer = {"a", text}}).fingerprint());
}

}  // namespace
}  // namespace zi
