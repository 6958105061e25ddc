#include "text/result.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <thread>

#include "open_files.h"
#include "text/finished_prompts.h"
#include "text/prompt.h"
#include "text/result_file.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using nlohmann::json;
using testing::HasSubstr;

Result generated(const std::string& id = "\"a\"") {
  Result result;
  result.index = 4;
  result.id = id;
  result.rank = 2;
  result.prompt = "In the";
  result.prompt_tokens = 2;
  result.text = " beginning";
  result.token_ids = {7, 8};
  result.finish_reason = "length";
  return result;
}

Result scored() {
  Result result = generated("7");
  result.text = result.finish_reason = "";
  result.token_ids.clear();
  result.token_logprobs = {-0.1f, -2.5f};
  result.perplexity = 3.25;
  return result;
}

TEST(Result, WritesItsKeysInOrder) {
  EXPECT_EQ(generated().to_json(),
            R"({"id":"a","rank":2,"prompt":"In the","prompt_tokens":2,"text":" beginning",)"
            R"("token_ids":[7,8],"finish_reason":"length"})");
}

TEST(Result, WritesLogprobsWhenAskedFor) {
  Result result = generated();
  result.logprobs = {{7, -0.1f, {{7, -0.1f}, {9, -3.0f}}}, {8, -1.5f, {}}};
  EXPECT_THAT(result.to_json(),
              HasSubstr(R"("logprobs":[{"id":7,"logprob":-0.1,"top":[[7,-0.1],[9,-3.0]]},)"
                        R"({"id":8,"logprob":-1.5,"top":[]}])"));
}

TEST(Result, LeavesOutTheAnswerWhereNothingWasGenerated) {
  EXPECT_EQ(scored().to_json(), R"({"id":7,"rank":2,"prompt":"In the","prompt_tokens":2,)"
                                R"("token_logprobs":[-0.1,-2.5],"perplexity":3.25})");
}

TEST(Result, WritesTheIdsOfAPromptThatWasGivenByThem) {
  Result result = generated();
  result.prompt_ids = {5, 0};
  EXPECT_THAT(result.to_json(),
              HasSubstr(R"("prompt":"In the","prompt_ids":[5,0],"prompt_tokens":2,)"));
  EXPECT_EQ(Result::deserialize(result.serialize()).prompt_ids, result.prompt_ids);
}

TEST(Result, WritesItsIdAsTheValueThatItIs) {
  const auto id = [](const std::string& text) {
    return json::parse(generated(text).to_json())["id"];
  };
  EXPECT_EQ(id("17"), 17);
  EXPECT_EQ(id("\"17\""), "17");
  EXPECT_EQ(id("\"q\\\"\\n\""), "q\"\n");
  EXPECT_EQ(id(""), 4) << "the index";
}

TEST(Result, WritesOneLineOfValidJsonForAnyBytes) {
  Result result = generated();
  result.text = std::string("a\xff\n\0\xE2\x82z\xE2", 8);
  const std::string line = result.to_json();
  EXPECT_EQ(line.find('\n'), std::string::npos);
  EXPECT_EQ(json::parse(line)["text"], std::string("a\uFFFD\n\0\uFFFDz\uFFFD", 13));
}

TEST(Result, WritesNumbersThatAreNotFiniteAsNull) {
  Result result = scored();
  result.token_logprobs = {-std::numeric_limits<float>::infinity(), -1};
  result.perplexity = std::numeric_limits<double>::infinity();
  EXPECT_THAT(result.to_json(), HasSubstr(R"("token_logprobs":[null,-1.0],"perplexity":null)"));
}

TEST(Result, SurvivesTheTripBetweenRanks) {
  Result result = generated();
  result.text = std::string("a\0\xff", 3);
  result.cached_tokens = 16;
  result.logprobs = {{7, -0.1f, {{7, -0.1f}, {9, -std::numeric_limits<float>::infinity()}}},
                     {8, std::nextafter(-1.0f, 0.0f), {}}};
  const Result back = Result::deserialize(result.serialize());
  EXPECT_EQ(back.index, 4u);
  EXPECT_EQ(back.cached_tokens, 16);
  EXPECT_EQ(back.text, result.text);
  EXPECT_EQ(back.to_json(), result.to_json());
  ASSERT_TRUE(back.logprobs);
  EXPECT_EQ((*back.logprobs)[1].logprob, std::nextafter(-1.0f, 0.0f));
  EXPECT_EQ((*back.logprobs)[0].top, (*result.logprobs)[0].top);
  const Result score = Result::deserialize(scored().serialize());
  EXPECT_EQ(score.to_json(), scored().to_json());
  EXPECT_FALSE(score.logprobs);
}

TEST(Result, RefusesDamagedBytes) {
  Result result = generated();
  result.logprobs = {{7, -0.1f, {{7, -0.1f}}}};
  result.token_logprobs = {1};
  const std::string bytes = result.serialize();
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_THROW(Result::deserialize(bytes.substr(0, length)), Error) << length;
  }
  EXPECT_THROW(Result::deserialize(bytes + 'x'), Error);
  EXPECT_THROW(Result::deserialize(Prompt().serialize()), Error);
}

class ResultFileTest : public testing::Test {
 protected:
  ResultFileTest() {
    std::string name = testing::TempDir() + "zi-result-XXXXXX";
    directory_ = ::mkdtemp(name.data());
  }
  ~ResultFileTest() override { std::filesystem::remove_all(directory_); }
  std::filesystem::path path() const { return directory_ / "out.jsonl"; }
  void put(const std::string& text) const { std::ofstream(path(), std::ios::binary) << text; }
  std::string content() const {
    std::ostringstream text;
    text << std::ifstream(path(), std::ios::binary).rdbuf();
    return text.str();
  }
  static std::string refusal(const std::filesystem::path& path, bool append) {
    try {
      ResultFile file(path, append);
    } catch (const IoError& error) {
      return error.what();
    }
    return "opened";
  }
  std::filesystem::path directory_;
};

TEST_F(ResultFileTest, HoldsEachLineAsSoonAsItIsWritten) {
  ResultFile file(path(), false);
  file.write(generated());
  EXPECT_EQ(content(), generated().to_json() + "\n");
  file.write(scored());
  EXPECT_EQ(content(), generated().to_json() + "\n" + scored().to_json() + "\n");
}

TEST_F(ResultFileTest, KeepsWhatStandsThereUntilTheFirstResult) {
  put("old\n");
  { const ResultFile file(path(), false); }
  EXPECT_EQ(content(), "old\n");
  ResultFile file(path(), false);
  EXPECT_EQ(content(), "old\n");
  file.write(generated());
  EXPECT_EQ(content(), generated().to_json() + "\n");
}

TEST_F(ResultFileTest, GoesOnBehindTheLastWholeLine) {
  const std::string line = generated().to_json() + "\n";
  put(line + R"({"id":"b","ra)");
  testing::internal::CaptureStderr();
  ResultFile file(path(), true);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("its 13 bytes are cut off"));
  file.write(scored());
  EXPECT_EQ(content(), line + scored().to_json() + "\n");
}

TEST_F(ResultFileTest, KeepsAFileOfWholeLines) {
  testing::internal::CaptureStderr();
  const std::string line = generated().to_json() + "\n";
  put(line);
  { const ResultFile file(path(), true); }
  EXPECT_EQ(content(), line);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST_F(ResultFileTest, CutsOffAnUnfinishedLineOfAnyLength) {
  const std::string begin = "{\"id\":";
  for (const std::size_t length : {65535u, 65536u, 65537u, 200000u}) {
    for (const std::string& before : {std::string(), generated().to_json() + "\n"}) {
      put(before + begin + std::string(length - begin.size(), 'x'));
      testing::internal::CaptureStderr();
      { const ResultFile file(path(), true); }
      testing::internal::GetCapturedStderr();
      EXPECT_EQ(content(), before) << length;
    }
  }
}

TEST_F(ResultFileTest, NamesAPathThatCannotBeWritten) {
  for (const bool resume : {false, true}) {
    EXPECT_THAT(refusal("/nonexistent/out.jsonl", resume),
                HasSubstr("/nonexistent/out.jsonl: --output cannot be written: No such file"));
    EXPECT_THAT(refusal(directory_, resume),
                HasSubstr("--output cannot be written: Is a directory"));
  }
  EXPECT_THAT(refusal("/dev/null", true), HasSubstr("--resume needs a regular file as --output"));
}

TEST_F(ResultFileTest, SaysWhenTheDiskIsFull) {
  ResultFile file("/dev/full", false);
  try {
    file.write(generated());
    FAIL() << "wrote to a full device";
  } catch (const IoError& error) {
    EXPECT_THAT(error.what(), HasSubstr("/dev/full: --output cannot be written: No space left"));
  }
}

TEST_F(ResultFileTest, ReadsWhatAnotherJobWroteUntilItEnded) {
  std::optional<ResultFile> first(std::in_place, path(), false);
  first->write(generated("\"before\""));
  std::thread ends_soon([&] {
    EXPECT_TRUE(test::wait_until([&] { return test::times_open(path()) == 2; }));
    first->write(generated("\"meanwhile\""));
    first.reset();
  });
  const ResultFile second(path(), true);
  ends_soon.join();
  EXPECT_EQ(second.finished()->by_id.size(), 2u);
}

TEST_F(ResultFileTest, ReadsWhereALimitEndedATextAndWhereNot) {
  {
    ResultFile file(path(), false);
    file.write(generated("1"));
    Result ended = generated("2");
    ended.finish_reason = "eos";
    file.write(ended);
    file.write(scored());  // id 7
  }
  const ResultFile file(path(), true);
  const auto& by_id = file.finished()->by_id;
  EXPECT_EQ(by_id.at("1").new_tokens, 2);
  EXPECT_TRUE(by_id.at("1").at_limit);
  EXPECT_EQ(by_id.at("2").new_tokens, 2);
  EXPECT_FALSE(by_id.at("2").at_limit);
  EXPECT_TRUE(by_id.at("7").fits_limit(1)) << "no text was generated";
}

TEST_F(ResultFileTest, LeavesNoHalfLineBehindAFailedWrite) {
  // A limit on the size of files stands in for a disk that fills up in mid-line.
  const std::string line = generated().to_json() + "\n";
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, SIG_IGN);
  ResultFile file(path(), false);
  file.write(generated());
  const rlimit limit{line.size() + 10, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  EXPECT_THROW(file.write(generated()), IoError);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(content(), line);
  file.write(generated());
  EXPECT_EQ(content(), line + line);
}

TEST_F(ResultFileTest, WritesToStandardOutput) {
  testing::internal::CaptureStdout();
  {
    ResultFile file("-", true);
    file.write(generated());
  }
  EXPECT_EQ(testing::internal::GetCapturedStdout(), generated().to_json() + "\n");
}

TEST_F(ResultFileTest, WaitsForASlowReaderOfANonBlockingPipe) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const int before = ::dup(STDOUT_FILENO);
  ::fcntl(ends[1], F_SETFL, O_NONBLOCK);
  ::dup2(ends[1], STDOUT_FILENO);
  Result result = generated();
  result.text = std::string(1 << 20, 'x');  // more than a pipe holds
  std::string received;
  std::thread reader([&] {
    char block[4096];
    for (ssize_t got; (got = ::read(ends[0], block, sizeof(block))) > 0;) {
      received.append(block, static_cast<std::size_t>(got));
    }
  });
  {
    ResultFile file("-", false);
    file.write(result);
  }
  ::dup2(before, STDOUT_FILENO);
  ::close(before);
  ::close(ends[1]);
  reader.join();
  ::close(ends[0]);
  EXPECT_EQ(received, result.to_json() + "\n");
}

TEST_F(ResultFileTest, KnowsTheFinishedPrompts) {
  Result by_ids = generated("17");
  by_ids.prompt_ids = {5, 6};
  {
    ResultFile file(path(), false);
    EXPECT_EQ(file.finished(), nullptr);
    file.write(generated("\"a\""));
    file.write(by_ids);
    file.write(generated("\"é\\n\""));
    file.write(scored());
  }
  put(content() + R"({"id":"half")");
  testing::internal::CaptureStderr();
  const ResultFile file(path(), true);
  testing::internal::GetCapturedStderr();
  const auto done = file.finished();
  std::vector<std::string> ids;
  for (const auto& [id, prompt] : done->by_id) ids.push_back(id);
  EXPECT_THAT(ids, testing::UnorderedElementsAre("\"a\"", "\"é\\n\"", "17", "7"));
  Prompt asked;
  asked.text = by_ids.prompt;
  EXPECT_TRUE(done->by_id.at("\"a\"").answers(asked));
  EXPECT_FALSE(done->by_id.at("17").answers(asked));
  asked.text.reset();
  asked.ids = by_ids.prompt_ids;
  EXPECT_TRUE(done->by_id.at("17").answers(asked));
  EXPECT_EQ(done->generated_line, 1u);
  EXPECT_EQ(done->scored_line, 4u);
}

TEST_F(ResultFileTest, KnowsTheSettingsAndModelsOfItsLines) {
  Result first = generated("1");
  first.settings = R"({"model":"m@01","seed":1,"temperature":0.5})";
  Result other = generated("3");
  other.settings = R"({"model":"n@02","temperature":0.0})";
  {
    ResultFile file(path(), false);
    file.write(first);
    first.id = "2";
    file.write(first);
    file.write(other);
    file.write(generated("4"));
  }
  EXPECT_EQ(Result::deserialize(first.serialize()).settings, first.settings);
  const ResultFile file(path(), true);
  const auto done = file.finished();
  EXPECT_THAT(done->settings, testing::ElementsAre("", R"({"seed":1,"temperature":0.5})",
                                                   R"({"temperature":0.0})"));
  EXPECT_EQ(done->by_id.at("1").settings, 1u);
  EXPECT_EQ(done->by_id.at("2").settings, 1u);
  EXPECT_EQ(done->by_id.at("3").settings, 2u);
  EXPECT_EQ(done->by_id.at("4").settings, 0u);
  EXPECT_THAT(done->models, testing::ElementsAre(std::pair("m@01", 1u), std::pair("n@02", 3u)));
  EXPECT_EQ(done->lines_without_settings, 1u);
}

TEST_F(ResultFileTest, MixesNoScoresWithGeneratedText) {
  const auto kind = [this](const Result& result, bool score, std::int64_t logprobs) -> std::string {
    put(result.to_json() + "\n");
    const ResultFile file(path(), true);
    testing::internal::CaptureStderr();
    try {
      file.finished()->check_kind(score, logprobs, "out.jsonl");
    } catch (const ConfigError& error) {
      testing::internal::GetCapturedStderr();
      return error.what();
    }
    return testing::internal::GetCapturedStderr();
  };
  Result two_best = generated();
  two_best.logprobs = {{7, -0.1f, {{7, -0.1f}, {9, -3.0f}}}, {8, -1.5f, {{8, -1.5f}, {9, -3.0f}}}};
  EXPECT_EQ(kind(generated(), false, 0), "");
  EXPECT_EQ(kind(scored(), true, 0), "");
  EXPECT_EQ(kind(two_best, false, 2), "");
  EXPECT_THAT(kind(generated(), true, 0),
              HasSubstr("out.jsonl:1 was written without --score, this job runs with it"));
  EXPECT_THAT(kind(scored(), false, 0),
              HasSubstr("out.jsonl:1 was written with --score, this job runs without it"));
  EXPECT_THAT(kind(two_best, false, 0), HasSubstr("written with --logprobs 2"));
  EXPECT_THAT(kind(generated(), false, 2), HasSubstr("written with --logprobs 0"));
}

TEST_F(ResultFileTest, RefusesToResumeAForeignFileAndLeavesItAlone) {
  for (const std::string foreign :
       {"some text", "{\"no\": 1}", "[]", "{\"id\": 1.5}", "{\"id\": 3}"}) {
    const std::string ours = generated("1").to_json() + "\n";
    const std::string text = ours + foreign + "\n" + ours + "a cut line";
    put(text);
    try {
      const ResultFile file(path(), true);
      ADD_FAILURE() << foreign;
    } catch (const PromptError& error) {
      EXPECT_THAT(error.what(),
                  HasSubstr(path().string() + ":2 is not a line that zero-infer wrote"));
    }
    EXPECT_EQ(content(), text);
  }
  put("important notes without a newline");
  EXPECT_THROW(ResultFile(path(), true), PromptError);
  EXPECT_EQ(content(), "important notes without a newline");
}

}  // namespace
}  // namespace zi
