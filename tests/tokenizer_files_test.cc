// What stands beside tokenizer.json: tokens that only tokenizer_config.json,
// special_tokens_map.json or added_tokens.json name.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "synthetic_checkpoint.h"
#include "text/tokenizer.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;
using Ids = std::vector<std::int32_t>;

const std::string kTokenizer = std::string(ZI_TEST_DATA) + "/bloom-kjv/tokenizer.json";

/// Texts of the files next to tokenizer.json; empty: there is no such file.
struct Beside {
  std::string config{};
  std::string map{};
  std::string added{};
};

TokenizerFiles files_of(const std::string& tokenizer, const Beside& beside) {
  const auto file = [](const char* name, const std::string& text) -> std::optional<TextFile> {
    if (text.empty()) return std::nullopt;
    return TextFile{name, text};
  };
  return {.tokenizer = {"tokenizer.json", tokenizer},
          .config = file("tokenizer_config.json", beside.config),
          .special_tokens_map = file("special_tokens_map.json", beside.map),
          .added_tokens = file("added_tokens.json", beside.added)};
}

std::string bundled_text() {
  static const std::string text = [] {
    std::ifstream file(kTokenizer);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }();
  return text;
}

Tokenizer tokenizer_with(const Beside& beside) {
  return Tokenizer::parse(files_of(bundled_text(), beside));
}

std::string refusal_beside(const Beside& beside) {
  try {
    tokenizer_with(beside);
  } catch (const CheckpointError& error) {
    return error.what();
  }
  return "accepted";
}

/// The bundled tokenizer.json with one more entry of `added_tokens`.
std::string with_added(const json& entry) {
  json file = json::parse(bundled_text());
  file["added_tokens"].push_back(entry);
  return file.dump();
}

struct Golden {
  const char* what;
  Beside beside;
  std::string text;
  Ids ids;
  std::string decoded;
};

// The reference's ids and texts: transformers 5.24.0 with tokenizers 0.23.3,
//   t = PreTrainedTokenizerFast.from_pretrained(directory)
//   ids = t(text, add_special_tokens=False).input_ids
//   t.decode(ids, skip_special_tokens=True)
// where the directory holds the bundled tokenizer.json and the files named here.
const char* const kMarkedText = "In <x> the <y> beginning <z>";

TEST(TokenizerFiles, GiveTheIdsOfTheReferenceToTokensNamedOnlyBesideTokenizerJson) {
  const std::vector<Golden> cases = {
      {"added_tokens.json, by id and not by name",
       {.added = R"({"<y>": 4097, "<x>": 4096})"},
       kMarkedText,
       {3495, 224, 4096, 262, 224, 4097, 2099, 224, 31, 93, 33},
       "In <x> the <y> beginning <z>"},
      {"the longest one",
       {.added = R"({"<x>": 4096, "<xx>": 4097})"},
       "<xx><x>",
       {4097, 4096},
       "<xx><x>"},
      {"a token of the vocabulary", {.added = R"({"a": 68})"}, "cab", {70, 68, 69}, "cab"},
      {"characters beyond the byte alphabet",
       {.added = "{\"\xE7\xA5\x9E\xF0\x9F\x98\x80\": 4096}"},
       "a \xE7\xA5\x9E\xF0\x9F\x98\x80 b",
       {68, 224, 4096, 274},
       "a \xE7\xA5\x9E\xF0\x9F\x98\x80 b"},
      {"added_tokens.json, one of them special by its name",
       {.map = R"({"pad_token": "<y>"})", .added = R"({"<y>": 4097, "<x>": 4096})"},
       kMarkedText,
       {3495, 224, 4096, 262, 224, 4097, 2099, 224, 31, 93, 33},
       "In <x> the  beginning <z>"},
      {"special by the config's list",
       {.config = R"({"additional_special_tokens": ["<x>"]})", .added = R"({"<x>": 4096})"},
       kMarkedText,
       {3495, 224, 4096, 262, 224, 31, 92, 33, 2099, 224, 31, 93, 33},
       "In  the <y> beginning <z>"},
      {"added_tokens_decoder",
       {.config = R"({"added_tokens_decoder": {"4096": {"content": "<x>", "special": true},
                                               "4097": {"content": "<y>"}}})"},
       kMarkedText,
       {3495, 224, 4096, 262, 224, 4097, 2099, 224, 31, 93, 33},
       "In  the <y> beginning <z>"},
      {"added_tokens_decoder hides the older files",
       {.config = R"({"added_tokens_decoder": {"4096": {"content": "<x>", "special": true}}})",
        .map = R"({"pad_token": "<y>"})",
        .added = R"({"<z>": 4097})"},
       kMarkedText,
       {3495, 224, 4096, 262, 224, 31, 92, 33, 2099, 224, 31, 93, 33},
       "In  the <y> beginning <z>"},
      {"an empty added_tokens_decoder, too",
       {.config = R"({"added_tokens_decoder": {}, "additional_special_tokens": ["<x>"]})",
        .map = R"({"pad_token": "<y>"})"},
       kMarkedText,
       {3495, 224, 4096, 262, 224, 31, 92, 33, 2099, 224, 31, 93, 33},
       "In  the <y> beginning <z>"},
      {"special by its name in the config",
       {.config = R"({"added_tokens_decoder": {"4096": {"content": "<x>"}}, "pad_token": "<x>"})"},
       kMarkedText,
       {3495, 224, 4096, 262, 224, 31, 92, 33, 2099, 224, 31, 93, 33},
       "In  the <y> beginning <z>"},
      {"once special, always special",
       {.config = R"({"added_tokens_decoder": {"2": {"content": "</s>", "special": false,
                                                     "normalized": true}}})"},
       "a</s>b",
       {68, 2, 69},
       "ab"},
      {"where it is searched for is as it was named last",
       {.config = R"({"added_tokens_decoder": {
           "1": {"content": "<s>", "special": true, "normalized": true},
           "4096": {"content": "a<s", "normalized": false}}})"},
       "a<s>b",
       {4096, 33, 69},
       "a<s>b"},
      {"tokens that are not normalized come first",
       {.config = R"({"added_tokens_decoder": {"4096": {"content": "n <x"},
                                               "4097": {"content": "<x>", "special": true}}})"},
       kMarkedText,
       {3495, 224, 4097, 262, 224, 31, 92, 33, 2099, 224, 31, 93, 33},
       "In  the <y> beginning <z>"},
      {"names before the list, in the reference's order of names",
       {.map = R"({"additional_special_tokens": ["<x>", "<z>"], "pad_token": "<y>"})"},
       kMarkedText,
       {3495, 224, 4097, 262, 224, 4096, 2099, 224, 4098},
       "In  the  beginning "},
      {"the same from the config",
       {.config = R"({"additional_special_tokens": ["<x>"], "mask_token": "<z>",
                      "eos_token": "<y>"})"},
       kMarkedText,
       {3495, 224, 4098, 262, 224, 4096, 2099, 224, 4097},
       "In  the  beginning "},
      {"a name of the older file replaces the config's",
       {.config = R"({"pad_token": "<x>"})", .map = R"({"pad_token": "<y>"})"},
       kMarkedText,
       {3495, 224, 31, 91, 33, 262, 224, 4096, 2099, 224, 31, 93, 33},
       "In <x> the  beginning <z>"},
      {"objects in the older file",
       {.map = R"({"pad_token": {"content": "<y>", "lstrip": false, "normalized": true,
                                 "rstrip": false, "single_word": false}})"},
       kMarkedText,
       {3495, 224, 31, 91, 33, 262, 224, 4096, 2099, 224, 31, 93, 33},
       "In <x> the  beginning <z>"},
      {"marked objects in the config",
       {.config = R"({"pad_token": {"__type": "AddedToken", "content": "<y>", "normalized": true},
            "additional_special_tokens": [{"__type": "AddedToken", "content": "<x>"}]})"},
       kMarkedText,
       {3495, 224, 4097, 262, 224, 4096, 2099, 224, 31, 93, 33},
       "In <x> the  beginning <z>"},
      {"lists of transformers 5 in both files",
       {.config = R"({"extra_special_tokens": ["<x>"]})",
        .map = R"({"extra_special_tokens": ["<y>"], "pad_token": "<z>"})"},
       kMarkedText,
       {3495, 224, 4097, 262, 224, 4098, 2099, 224, 4096},
       "In  the  beginning "},
      {"one token under two names",
       {.config = R"({"pad_token": "<x>", "sep_token": "<x>"})"},
       kMarkedText,
       {3495, 224, 4096, 262, 224, 31, 92, 33, 2099, 224, 31, 93, 33},
       "In  the <y> beginning <z>"},
      {"a name makes a token of the vocabulary special",
       {.config = R"({"pad_token": "ab"})"},
       "cab ab ab",
       {70, 477, 224, 477, 224, 477},
       "c  "},
      {"nulls and empty texts name nothing",
       {.config = R"({"pad_token": null, "mask_token": "", "additional_special_tokens": null})"},
       kMarkedText,
       {3495, 224, 31, 91, 33, 262, 224, 31, 92, 33, 2099, 224, 31, 93, 33},
       "In <x> the <y> beginning <z>"},
      {"the loader's own switches are not looked at",
       {.config = R"({"add_bos_token": true, "bos_token": "<s>", "add_prefix_space": true})"},
       "In",
       {3495},
       "In"},
  };
  for (const Golden& golden : cases) {
    const Tokenizer tokenizer = tokenizer_with(golden.beside);
    EXPECT_EQ(tokenizer.encode(golden.text), golden.ids) << golden.what;
    EXPECT_EQ(tokenizer.decode(golden.ids), golden.decoded) << golden.what;
  }
}

TEST(TokenizerFiles, MakeTheTokenizerLarger) {
  EXPECT_EQ(tokenizer_with({}).size(), 4096);
  const Tokenizer two = tokenizer_with({.map = R"({"pad_token": "<y>", "mask_token": "<z>"})"});
  EXPECT_EQ(two.size(), 4098);
  EXPECT_EQ(two.token_text(4096), "<y>");
  EXPECT_EQ(two.token_bytes(4096), "");
}

TEST(TokenizerFiles, WithOtherIdsThanTheReferenceGivesAreRefused) {
  // The reference takes no notice of the ids: it would give 4096 and 4097, or 2.
  const std::vector<std::pair<Beside, std::string>> cases = {
      {{.added = R"({"<y>": 4200})"},
       "added_tokens.json: the added token `<y>` has the id 4200, but 4096 is the next free one"},
      {{.added = R"({"<y>": 3, "<x>": 4096})"},
       "added_tokens.json: the added token `<y>` has the id 3, but 4096"},
      {{.added = R"({"a": 7})"},
       "added_tokens.json: the added token `a` has the id 7, but 68 in tokenizer.json"},
      {{.config = R"({"added_tokens_decoder": {"9": {"content": "</s>", "special": true}}})"},
       "tokenizer_config.json: the added token `</s>` has the id 9, but 2 in tokenizer.json"},
      {{.config = R"({"added_tokens_decoder": {"4096": {"content": "<x>"},
                                               "04096": {"content": "<y>"}}})"},
       "tokenizer_config.json: the added token `<x>` has the id 4096, but 4097"},
  };
  for (const auto& [beside, message] : cases) {
    EXPECT_THAT(refusal_beside(beside), HasSubstr(message));
  }
}

TEST(TokenizerFiles, ThatVersionsOfTheReferenceReadDifferentlyAreRefused) {
  // Transformers 5.24 and 4.57 give these tokens different ids, or one of them none.
  const std::vector<std::pair<Beside, std::string>> cases = {
      {{.config = R"({"image_token": "<x>"})"}, "`image_token` names the token `<x>`"},
      {{.map = R"({"image_token": {"content": "<x>"}})"}, "`image_token` names the token `<x>`"},
      {{.config = R"({"extra_special_tokens": {"image": "<x>"}})"},
       "`extra_special_tokens` names the token `<x>`"},
      {{.config = R"({"additional_special_tokens": ["<x>"]})",
        .map = R"({"additional_special_tokens": ["<x>", "<y>"]})"},
       "special_tokens_map.json: `additional_special_tokens` names the token `<y>`"},
      {{.config = R"({"additional_special_tokens": ["<x>"], "extra_special_tokens": ["<y>"]})"},
       "`additional_special_tokens` names the token `<x>`"},
  };
  for (const auto& [beside, message] : cases) {
    EXPECT_THAT(refusal_beside(beside),
                AllOf(HasSubstr(message), HasSubstr("add it to `added_tokens`")));
  }
  // Lists of the same tokens agree, and where tokenizer.json has the token so do all.
  EXPECT_EQ(tokenizer_with({.config = R"({"additional_special_tokens": ["<x>", "<y>"]})",
                            .map = R"({"additional_special_tokens": ["<y>", "<x>"]})"})
                .encode("<x><y>"),
            (Ids{4096, 4097}));
  const Beside beside = {.config = R"({"image_token": "<x>"})"};
  const std::string tokenizer =
      with_added({{"id", 4096}, {"content", "<x>"}, {"special", true}, {"normalized", false}});
  EXPECT_EQ(Tokenizer::parse(files_of(tokenizer, beside)).encode("<x>"), Ids{4096});
}

TEST(TokenizerFiles, ThatAreNotUnderstoodAreRefusedByName) {
  const std::vector<std::pair<Beside, std::string>> cases = {
      {{.config = "["}, "tokenizer_config.json: not valid JSON"},
      {{.config = "[]"}, "tokenizer_config.json: a JSON object was expected"},
      {{.map = "7"}, "special_tokens_map.json: a JSON object was expected"},
      {{.added = R"({"<x>": 1, "<x>": 2})"}, "added_tokens.json: `<x>` is there twice"},
      {{.added = R"({"<x>": "4096"})"}, "added_tokens.json: the token `<x>` has the id \"4096\""},
      {{.added = R"({"<x>": -1})"}, "added_tokens.json: the token `<x>` has the id -1"},
      {{.added = R"({"<x>": 4000000000})"}, "the token `<x>` has the id 4000000000"},
      {{.config = R"({"pad_token": 7})"}, "tokenizer_config.json: `pad_token` is 7"},
      {{.config = R"({"pad_token": ["<x>"]})"}, "`pad_token` is an array"},
      {{.config = R"({"pad_token": {"content": "<x>"}})"}, "`pad_token` is an object"},
      {{.map = R"({"pad_token": {"id": 3}})"},
       "special_tokens_map.json: an added token has no `content`"},
      {{.map = R"({"pad_token": {"content": 5}})"},
       "special_tokens_map.json: the `content` of an added token is 5, which is no text"},
      {{.map = R"({"pad_token": {"content": "<x>", "normalized": 1}})"},
       "`normalized` is 1, not true or false"},
      {{.map = R"({"additional_special_tokens": "<x>"})"},
       "`additional_special_tokens` is \"<x>\"; a list of tokens was expected"},
      {{.config = R"({"added_tokens_decoder": null})"}, "`added_tokens_decoder` is null"},
      {{.config = R"({"added_tokens_decoder": {"4096": "<x>"}})"},
       "`added_tokens_decoder` has `4096`: \"<x>\""},
      {{.config = R"({"added_tokens_decoder": {"4096x": {"content": "<x>"}}})"},
       "`added_tokens_decoder` has `4096x`"},
      {{.config = R"({"added_tokens_decoder": {"99999999999": {"content": "<x>"}}})"},
       "`added_tokens_decoder` has `99999999999`"},
      {{.config = R"({"split_special_tokens": true})"},
       "tokenizer_config.json: `split_special_tokens` is not supported"},
  };
  for (const auto& [beside, message] : cases) {
    EXPECT_THAT(refusal_beside(beside), HasSubstr(message));
  }
}

TEST(TokenizerFiles, MayHaveSettingsWhoseNamesEndLikeThoseOfTokens) {
  for (const char* config : {R"({"add_bos_token": "yes"})", R"({"add_eos_token": "no"})"}) {
    EXPECT_EQ(refusal_beside({.config = config}).find("names the token"), std::string::npos)
        << config;
  }
}

TEST(TokenizerFiles, SayHowFarATokenReaches) {
  // Ids of the reference (transformers 5.24): the white space before the token is its own.
  const Tokenizer tokenizer = tokenizer_with(
      {.config = R"({"added_tokens_decoder": {"4096": {"content": "<x>", "lstrip": true}}})"});
  EXPECT_EQ(tokenizer.encode("In  <x> the"), (Ids{3495, 4096, 262}));
  // What tokenizer.json says of it counts where an added_tokens.json has its id.
  const std::string file =
      with_added({{"id", 4096}, {"content", "<x>"}, {"special", false}, {"rstrip", true}});
  const Tokenizer both = Tokenizer::parse(files_of(file, {.added = R"({"<x>": 4096})"}));
  EXPECT_EQ(both.encode("In<x>  the"),
            tokenizer_with({.added = R"({"<x>": 4096})"}).encode("In<x>the"));
}

TEST(TokenizerFiles, AreWarnedOfWhereTheyDisagreeOnAFirstToken) {
  const auto warning = [](const std::string& config, const json& post_processor) {
    json file = json::parse(bundled_text());
    file["post_processor"] = post_processor;
    ::testing::internal::CaptureStderr();
    Tokenizer::parse(files_of(file.dump(), {.config = config}));
    return ::testing::internal::GetCapturedStderr();
  };
  const json around = {{"type", "BertProcessing"}, {"cls", {"<s>", 1}}, {"sep", {"</s>", 2}}};
  EXPECT_THAT(warning(R"({"add_bos_token": true})", nullptr), HasSubstr("puts no token in front"));
  EXPECT_THAT(warning(R"({"add_bos_token": false})", around), HasSubstr("puts a token in front"));
  EXPECT_EQ(warning(R"({"add_bos_token": false})", nullptr), "");
  EXPECT_EQ(warning(R"({"add_bos_token": true})", around), "");
  EXPECT_EQ(warning("{}", around), "");
}

TEST(TokenizerFiles, CannotSteerTheTerminalByAMessage) {
  const std::string evil = "\\u001b[2J\\u009b\\u202e" + std::string(1000, 'x');
  for (const Beside& beside :
       {Beside{.added = "{\"" + evil + "\": 7}"},
        Beside{.config = "{\"" + evil + "_token\": \"<x>\"}"},
        Beside{.config = "{\"pad_token\": [], \"" + evil + "\": \"" + evil + "\"}"},
        Beside{.config = "{\"added_tokens_decoder\": {\"" + evil + "\": {}}}"},
        Beside{.config = "{\"image_token\": \"" + evil + "\"}"}}) {
    const std::string message = refusal_beside(beside);
    EXPECT_NE(message, "accepted");
    for (const char* raw : {"\x1b", "\u009b", "\u202e"}) {
      EXPECT_EQ(message.find(raw), std::string::npos) << message;
    }
    EXPECT_LT(message.size(), 700u) << message;
  }
}

TEST(TokenizerFiles, HaveAFingerprint) {
  const auto print = [](const Beside& beside) { return tokenizer_with(beside).fingerprint(); };
  const std::uint64_t alone = print({});
  EXPECT_EQ(print({}), alone);
  const std::uint64_t other = Tokenizer::parse(files_of(bundled_text() + " ", {})).fingerprint();
  // Each file counts, also one of the same text under another name.
  const std::vector<std::uint64_t> all = {
      alone,
      other,
      print({.config = "{}"}),
      print({.config = "{ }"}),
      print({.map = "{}"}),
      print({.added = "{}"}),
      print({.config = "{}", .map = "{}"}),
      Tokenizer::bytes().fingerprint(),
  };
  for (std::size_t i = 0; i < all.size(); ++i) {
    for (std::size_t k = 0; k < i; ++k) EXPECT_NE(all[i], all[k]) << i << " and " << k;
  }
}

class TokenizerDirectory : public ::testing::Test {
 protected:
  TokenizerDirectory() { std::filesystem::copy(kTokenizer, path("tokenizer.json")); }
  std::filesystem::path path(const char* name) const { return directory_.path() / name; }
  Tokenizer load() const { return Tokenizer::load(path("tokenizer.json")); }
  test::TemporaryDirectory directory_;
};

TEST_F(TokenizerDirectory, IsReadAsAWhole) {
  const std::uint64_t alone = load().fingerprint();
  test::write_text(path("added_tokens.json"), R"({"<x>": 4096})");
  test::write_text(path("special_tokens_map.json"), R"({"pad_token": "<y>"})");
  test::write_text(path("tokenizer_config.json"), R"({"mask_token": "<z>"})");
  const Tokenizer all = load();
  EXPECT_EQ(all.encode("<x><y><z>"), (Ids{4096, 4097, 4098}));
  EXPECT_NE(all.fingerprint(), alone);
}

TEST_F(TokenizerDirectory, NamesFilesThatWereNotFetched) {
  for (const char* name : {"added_tokens.json", "special_tokens_map.json", "tokenizer_config.json",
                           "tokenizer.json"}) {
    test::write_text(path(name), "version https://git-lfs.github.com/spec/v1\noid sha256:0\n");
    EXPECT_THAT([&] { load(); }, ThrowsMessage<CheckpointError>(AllOf(
                                     HasSubstr(path(name).string()), HasSubstr("git lfs pull"))));
    std::filesystem::remove(path(name));
    // As the hub's cache looks when a file of it was removed.
    std::filesystem::create_symlink("gone", path(name));
    EXPECT_THAT([&] { load(); }, ThrowsMessage<CheckpointError>(AllOf(
                                     HasSubstr(path(name).string()), HasSubstr("does not exist"))));
    std::filesystem::remove(path(name));
  }
}

TEST_F(TokenizerDirectory, IsReadFromTokenizerJsonWhereItHasOne) {
  const auto read = [&] { return Tokenizer::in_directory(directory_.path()); };
  json vocabulary = json::parse(bundled_text())["model"]["vocab"];
  vocabulary["a"].swap(vocabulary["b"]);
  test::write_text(path("vocab.json"), vocabulary.dump());
  test::write_text(path("merges.txt"), "#version: 0.2\n");
  EXPECT_EQ(read().value().encode("a"), Ids{68});
  std::filesystem::remove(path("tokenizer.json"));
  EXPECT_EQ(read().value().encode("a"), Ids{69});
  std::filesystem::create_symlink("gone", path("tokenizer.json"));
  EXPECT_THROW(read(), CheckpointError) << "not another tokenizer in its place";
  std::filesystem::remove(path("tokenizer.json"));
  std::filesystem::remove(path("merges.txt"));
  EXPECT_FALSE(read().has_value()) << "vocab.json alone";
}

TEST_F(TokenizerDirectory, IsNotReadWithoutALimit) {
  // Sparse: nothing is written.
  std::filesystem::resize_file(path("tokenizer.json"), (std::uintmax_t{64} << 20) + 1);
  EXPECT_THAT([&] { load(); }, ThrowsMessage<CheckpointError>(
                                   HasSubstr("a file of this kind has at most 67108864")));
}

}  // namespace
}  // namespace zi
