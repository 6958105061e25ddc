#include "base/json_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <string>

#include "synthetic_checkpoint.h"
#include "zero_infer/error.h"

namespace zi {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

/// What a clone without `git lfs` leaves in place of a file.
const std::string kLfsPointer =
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 14500471\n";

class JsonFileTest : public ::testing::Test {
 protected:
  std::filesystem::path path(const char* name) const { return directory_.path() / name; }
  test::TemporaryDirectory directory_;
};

TEST_F(JsonFileTest, ReadsWholeFilesUpToTheLimit) {
  test::write_text(path("a"), "12345");
  EXPECT_EQ(read_text_file(path("a"), 5), "12345");
  EXPECT_THAT([&] { read_text_file(path("a"), 4); },
              ThrowsMessage<CheckpointError>(HasSubstr("has 5 bytes; a file of this kind has at "
                                                       "most 4")));
  test::write_text(path("empty"), "");
  EXPECT_EQ(read_text_file(path("empty"), 5), "");
}

TEST_F(JsonFileTest, RecognisesALfsPointer) {
  test::write_text(path("config.json"), kLfsPointer);
  EXPECT_THAT([&] { read_text_file(path("config.json"), 1000); },
              ThrowsMessage<CheckpointError>(
                  AllOf(HasSubstr("config.json is a Git LFS pointer"), HasSubstr("git lfs pull"))));
}

TEST_F(JsonFileTest, NeitherWaitsForAPipeNorReadsADirectory) {
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  std::filesystem::create_directory(path("folder"));
  for (const char* name : {"pipe", "folder"}) {
    EXPECT_THAT([&] { read_text_file(path(name), 1000); },
                ThrowsMessage<CheckpointError>(HasSubstr("is not a file")));
  }
  EXPECT_THAT([&] { read_text_file(path("none"), 1000); },
              ThrowsMessage<CheckpointError>(HasSubstr("none does not exist")));
}

TEST(JsonObject, NamesTheKeyOfANumberThatOnlyPythonWrites) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"({"a": 1, "b": NaN})",
       "config.json: not valid JSON: `b` is NaN, which JSON does not have"},
      {R"({"b":Infinity,"c":1})", "`b` is Infinity,"},
      {R"({"b": -Infinity})", "`b` is -Infinity,"},
      {R"({"b": [1, NaN]})", "there is NaN,"},
      {"NaN", "there is NaN,"},
      {R"({"NaN": nul})", "not valid JSON"},
  };
  for (const auto& [text, message] : cases) {
    const std::string& given = text;
    EXPECT_THAT([&] { parse_json_object(given, "config.json"); },
                ThrowsMessage<CheckpointError>(HasSubstr(message)))
        << text;
  }
}

}  // namespace
}  // namespace zi
