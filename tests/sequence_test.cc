#include "engine/sequence.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "engine/admission.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

const Tokenizer& bytes() {
  static const Tokenizer instance = Tokenizer::bytes();
  return instance;
}

GenerationOptions options() {
  GenerationOptions o;
  o.vocabulary = 256;
  o.settings.max_new_tokens = 20;
  return o;
}

std::unique_ptr<Sequence> admitted(const OwnSettings& own, const std::string& text = "In",
                                   std::int64_t cached_tokens = 64) {
  Prompt prompt;
  prompt.index = 5;
  prompt.text = text;
  prompt.own = own;
  return Admission(bytes(), options(), cached_tokens).admit(std::move(prompt));
}

/// Takes the bytes of `text` one by one until it ends; the texts of all deltas.
std::vector<std::string> shown(Sequence& s, const std::string& text) {
  std::vector<std::string> parts;
  for (const char byte : text) {
    if (!s.finish_reason.empty()) break;
    s.take_token(static_cast<unsigned char>(byte), false);
    parts.push_back(s.take_delta().text);
  }
  return parts;
}

std::string joined(const std::vector<std::string>& parts) {
  std::string all;
  for (const std::string& part : parts) all += part;
  return all;
}

TEST(Sequence, TellsWholeCharactersAndNoPartOfAStopText) {
  OwnSettings own;
  own.stop = {"END", "NDE"};
  const auto s = admitted(own);
  const std::vector<std::string> parts = shown(*s, "a\u00e9 EN ENDE");
  EXPECT_EQ(joined(parts), "a\u00e9 EN ");
  EXPECT_EQ(parts.at(1), "");     // half a character
  EXPECT_EQ(parts.at(4), "");     // E may begin a stop text
  EXPECT_EQ(parts.at(6), "EN ");  // and did not
  EXPECT_EQ(s->finish_reason, "stop");
  EXPECT_EQ(s->take_result().text, "a\u00e9 EN ");
}

TEST(Sequence, TellsWhatItHeldBackWhenItEnds) {
  OwnSettings own;
  own.stop = {"END"};
  own.max_new_tokens = 2;
  const auto s = admitted(own);
  EXPECT_EQ(joined(shown(*s, "EN")), "EN");
  EXPECT_EQ(s->finish_reason, "length");
}

TEST(Sequence, IsNotStoppedBeforeItsLeastNewTokens) {
  OwnSettings own;
  own.stop = {"b"};
  own.min_new_tokens = 3;
  const auto s = admitted(own);
  EXPECT_EQ(joined(shown(*s, "abcab")), "abca");
  EXPECT_EQ(s->finish_reason, "stop");
}

TEST(Sequence, AStopTextThatBeganBeforeTheLeastNewTokensIsNone) {
  OwnSettings own;
  own.stop = {"bcd"};
  own.min_new_tokens = 3;
  own.max_new_tokens = 8;
  const auto s = admitted(own);
  EXPECT_EQ(joined(shown(*s, "abcdabcd")), "abcda");
}

TEST(Sequence, DeltasAreTheTextWhateverTheStopsAre) {
  std::mt19937 random(3);
  for (int round = 0; round < 2000; ++round) {
    OwnSettings own;
    own.max_new_tokens = 1 + static_cast<std::int64_t>(random() % 30);
    own.min_new_tokens = static_cast<std::int64_t>(random() % 6);
    own.stop.emplace();
    for (auto stops = random() % 3; stops > 0; --stops) {
      std::string stop;
      for (auto letters = 1 + random() % 4; letters > 0; --letters) stop += "ab"[random() % 2];
      own.stop->push_back(stop);
    }
    std::string text;
    for (int i = 0; i < 30; ++i) text += "ab"[random() % 2];
    const auto s = admitted(own);
    const std::string told = joined(shown(*s, text));
    ASSERT_FALSE(s->finish_reason.empty());
    EXPECT_EQ(told, s->take_result().text) << round;
  }
}

TEST(Sequence, ItsDeltasHaveTheLogprobsOfTheirTokens) {
  OwnSettings own;
  own.logprobs = 1;
  own.prompt_logprobs = 0;
  const auto s = admitted(own);
  s->prompt_logprobs = {{.id = 110, .logprob = -1, .top = {}}};
  for (int i = 0; i < 3; ++i) {
    s->logprobs.push_back({.id = 97 + i, .logprob = -0.5F, .top = {{97, -0.5F}}});
    s->take_token(97 + i, false);
    const Delta delta = s->take_delta();
    ASSERT_EQ(delta.logprobs.size(), 1u);
    EXPECT_EQ(delta.logprobs[0].id, 97 + i);
    EXPECT_EQ(delta.new_tokens, 1);
    EXPECT_EQ(delta.prompt_logprobs.size(), i == 0 ? 1u : 0u);
    const Delta back = Delta::deserialize(delta.serialize());
    EXPECT_EQ(back.text, delta.text);
    EXPECT_EQ(back.logprobs.at(0).top, delta.logprobs.at(0).top);
    EXPECT_EQ(back.prompt_logprobs.size(), delta.prompt_logprobs.size());
  }
  EXPECT_THAT(s->take_delta().text, IsEmpty());
}

TEST(Admission, GivesWhatFitsToAPromptThatWantsAsMuch) {
  OwnSettings own;
  own.max_new_tokens = kAsManyAsFit;
  EXPECT_EQ(admitted(own, "In", 64)->max_new_tokens, 62);
  EXPECT_EQ(admitted(own, std::string(63, 'a'), 64)->max_new_tokens, 1);
  EXPECT_THROW(admitted(own, std::string(64, 'a'), 64), PromptError);
}

TEST(Admission, PutsThePromptsOwnSettingsOverTheJobs) {
  GenerationOptions job = options();
  job.settings.temperature = 0.5F;
  job.settings.top_k = 4;
  job.settings.stop = {"x"};
  const Admission admission(bytes(), job, 256);
  Prompt prompt;
  prompt.text = "a";
  prompt.own.top_k = 9;
  prompt.own.stop.emplace();
  const auto s = admission.admit(prompt);
  EXPECT_EQ(s->settings.temperature, 0.5F);
  EXPECT_EQ(s->settings.top_k, 9);
  EXPECT_THAT(s->settings.stop, IsEmpty());
}

TEST(Admission, AScoredPromptGivesNoNewTokensWhateverItAsksFor) {
  GenerationOptions job = options();
  job.score = true;
  const Admission admission(bytes(), job, 16);
  Prompt prompt;
  prompt.text = "abcd";
  prompt.own.max_new_tokens = 100000;
  const auto s = admission.admit(prompt);
  EXPECT_TRUE(s->only_prompt());
  EXPECT_EQ(s->settings.prompt_logprobs, 0);
}

/// "a" is 2; a text is put between 0 and 1.
Tokenizer with_special_tokens() {
  return Tokenizer::parse({.tokenizer = {"small.json", R"({
      "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "decoder": {"type": "Fuse"},
      "post_processor": {"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "special_tokens": {"<s>": {"ids": [0]}, "</s>": {"ids": [1]}}},
      "model": {"type": "BPE", "unk_token": "a", "fuse_unk": false, "byte_fallback": false,
                "vocab": {"<s>": 0, "</s>": 1, "a": 2}, "merges": []}})"}});
}

Prompt of_text(std::string text) {
  Prompt prompt;
  prompt.text = std::move(text);
  return prompt;
}

/// The message of the error that `function` ends with; empty where there is none.
template <typename Function>
std::string error_of(const Function& function) {
  try {
    function();
    return "";
  } catch (const PromptError& error) {
    return error.what();
  }
}

TEST(Admission, CutsATextAheadAsItWouldWhenItAdmitsIt) {
  const Tokenizer tokenizer = with_special_tokens();
  for (const bool special : {true, false}) {
    GenerationOptions job = options();
    job.special_tokens = special;
    const Admission admission(tokenizer, job, 64);
    for (const bool from_template : {false, true}) {
      Prompt prompt = of_text("aa");
      prompt.no_special_tokens = from_template;
      const std::vector<std::int32_t> ids = admission.encode(prompt);
      EXPECT_EQ(ids.size(), special && !from_template ? 4u : 2u);
      EXPECT_EQ(ids, admission.admit(prompt)->tokens);
    }
  }
}

TEST(Admission, TakesTheTokensThatATextWasCutInto) {
  Prompt prompt = of_text("In");
  prompt.text_ids = {7, 8, 9};  // not those of the text: it is not cut again
  const auto s = Admission(bytes(), options(), 64).admit(prompt);
  EXPECT_EQ(s->tokens, (std::vector{7, 8, 9}));
  EXPECT_EQ(s->prompt_tokens, 3);
  EXPECT_EQ(s->prompt_text, "In");
  EXPECT_FALSE(s->take_result().prompt_ids) << "the user gave none";
}

TEST(Admission, RefusesTokensThatWereCutAheadAsThoseThatItCuts) {
  const Tokenizer tokenizer = with_special_tokens();
  GenerationOptions job = options();
  job.special_tokens = false;
  const Admission admission(tokenizer, job, 64);  // 44 next to the new ones
  Prompt long_one = of_text(std::string(45, 'a'));
  const std::string refused = error_of([&] { admission.admit(long_one); });
  EXPECT_THAT(refused, HasSubstr("45 prompt tokens and 20 new ones do not fit"));
  long_one.text_ids = admission.encode(long_one);
  EXPECT_EQ(error_of([&] { admission.admit(long_one); }), refused);
  Prompt foreign = of_text("a");
  foreign.text_ids = {7, 256};
  EXPECT_THAT(error_of([&] { admission.admit(foreign); }), HasSubstr("token id 256"));
}

TEST(Admission, NamesThePositionsFirstAndElseTheBudgetThatIsNeeded) {
  constexpr std::size_t kPageBytes = std::size_t{3} << 20;
  GenerationOptions job = options();  // 20 new tokens
  job.max_positions = 100;
  const Admission admission(bytes(), job, 64, kPageBytes);
  EXPECT_EQ(admission.room(), 64);
  const auto refusal = [&](std::int64_t tokens, std::int64_t new_tokens) {
    Prompt prompt = of_text(std::string(static_cast<std::size_t>(tokens), 'a'));
    prompt.own.max_new_tokens = new_tokens;
    return error_of([&] { admission.admit(prompt); });
  };
  // 65 tokens take five pages of 16.
  EXPECT_EQ(refusal(45, 20),
            "45 prompt tokens and 20 new ones do not fit the KV cache (64 tokens); give "
            "--kv-budget 15MiB or more, or shorten the prompt or --max-new-tokens");
  EXPECT_THAT(refusal(80, 20), HasSubstr("do not fit the KV cache (64 tokens); give --kv-budget "
                                         "21MiB or more"));
  EXPECT_EQ(refusal(81, 20),
            "the prompt has 81 bytes, which are 81 tokens at least, and with 20 new ones they do "
            "not fit the model's positions (100 tokens); shorten the prompt or --max-new-tokens");
  Prompt ids;
  ids.ids.emplace(81, 1);
  EXPECT_EQ(error_of([&] { admission.admit(ids); }),
            "81 prompt tokens and 20 new ones do not fit the model's positions (100 tokens); "
            "shorten the prompt or --max-new-tokens");
  ids.own.max_new_tokens = 70;  // more than the cache has alone
  EXPECT_THAT(error_of([&] { admission.admit(ids); }), HasSubstr("the model's positions"));
  EXPECT_THAT(refusal(1, 80), HasSubstr("fit the KV cache (64 tokens); give --kv-budget 18MiB"));
  EXPECT_THAT(refusal(1, 100), HasSubstr("in the model's positions (100 tokens); lower"));
}

TEST(Admission, CutsNoTextAheadThatCannotFit) {
  const Tokenizer tokenizer = with_special_tokens();  // a token is up to 4 bytes of a text
  ASSERT_EQ(tokenizer.longest_token_bytes(), 4u);
  const Admission admission(tokenizer, options(), 64);
  EXPECT_EQ(admission.encode(of_text(std::string(44 * 4, 'a'))).size(), 44u * 4 + 2);
  const Prompt far_too_long = of_text(std::string((1 << 20) + 1, 'a'));
  const std::string refused = error_of([&] { admission.encode(far_too_long); });
  EXPECT_THAT(refused, HasSubstr("the prompt has 1048577 bytes, which are 262145 tokens at least, "
                                 "and with 20 new ones they do not fit the KV cache (64 tokens)"));
  EXPECT_EQ(error_of([&] { admission.admit(far_too_long); }), refused);
  GenerationOptions short_model = options();
  short_model.max_positions = 32;
  EXPECT_THAT(
      error_of([&] {
        Admission(tokenizer, short_model, 64).encode(of_text(std::string(12 * 4 + 1, 'a')));
      }),
      HasSubstr("49 bytes, which are 13 tokens at least, and with 20 new ones they do not fit "
                "the model's positions (32 tokens); shorten"));
  Prompt greedy = of_text("a");
  greedy.own.max_new_tokens = 64;
  EXPECT_THAT(error_of([&] { admission.admit(greedy); }),
              HasSubstr("3 prompt tokens and 64 new ones do not fit the KV cache (64 tokens)"));
}

}  // namespace
}  // namespace zi
