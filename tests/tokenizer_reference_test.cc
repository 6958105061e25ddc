// Ids and texts are those of Hugging Face tokenizers, for each kind of file. The vocabularies and
// the reference are what tests/reference_packages.sh installs; tokenizer_reference.py asks it.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/utf8.h"
#include "temporary_directory.h"
#include "text/tokenizer.h"

namespace zi {
namespace {

using nlohmann::json;
using Ids = std::vector<std::int32_t>;
namespace fs = std::filesystem;

const fs::path kPackages = ZI_REFERENCE_PACKAGES;

std::vector<json> lines_of(const fs::path& path) {
  std::vector<json> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(json::parse(line));
  return lines;
}

class TokenizerReference : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!fs::exists(kPackages / "done-3")) {
      GTEST_SKIP() << "run tests/reference_packages.sh build-reference";
    }
    const std::string command =
        fmt::format("'{}' '{}/../tokenizer_reference.py' '{}' {} '{}'",
                    (kPackages / "venv/bin/python").string(), ZI_TEST_DATA, kPackages.string(),
                    GetParam(), folder_.path().string());
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
  }
  const fs::path& folder() const { return folder_.path(); }

 private:
  test::TemporaryDirectory folder_;
};

TEST_P(TokenizerReference, GivesTheSameIdsAndTexts) {
  const std::optional<Tokenizer> tokenizer = Tokenizer::in_directory(folder());
  ASSERT_TRUE(tokenizer);
  const std::vector<json> cases = lines_of(folder() / "cases.jsonl");
  ASSERT_GE(cases.size(), 5000u);
  int wrong = 0;
  for (const json& expected : cases) {
    const auto text = expected["text"].get<std::string>();
    const Ids ids = tokenizer->encode(text);
    EXPECT_EQ(ids, expected["ids"].get<Ids>()) << expected["text"];
    EXPECT_EQ(tokenizer->encode(text, true), expected["ids_special"].get<Ids>())
        << expected["text"];
    EXPECT_EQ(tokenizer->decode(ids), expected["decoded"]) << expected["text"];
    wrong += HasFailure() ? 1 : 0;
    ASSERT_LE(wrong, 5) << "and so on";
  }
  for (const json& expected : lines_of(folder() / "ids.jsonl")) {
    TextStream stream(*tokenizer);
    std::string streamed;
    const Ids ids = expected["ids"].get<Ids>();
    EXPECT_EQ(tokenizer->decode(ids, true), expected["decoded_special"]) << expected["ids"];
    for (const std::int32_t id : ids) {
      const std::string part = stream.push(id);
      EXPECT_FALSE(first_invalid_utf8(part)) << "a part of a character";
      streamed += part;
    }
    EXPECT_EQ(streamed + stream.finish(), expected["decoded"]) << expected["ids"];
    wrong += HasFailure() ? 1 : 0;
    ASSERT_LE(wrong, 5) << "and so on";
  }
  const std::vector<json> golden = lines_of(folder() / "golden.jsonl");
  const std::set<std::string> with_golden = {"gpt2", "llama3", "qwen2", "llama2", "deepseek"};
  EXPECT_EQ(golden.size() > 40, with_golden.contains(GetParam())) << golden.size();
  for (const json& expected : golden) {
    EXPECT_EQ(tokenizer->encode(expected["text"].get<std::string>()), expected["ids"].get<Ids>())
        << expected["text"];
  }
}

INSTANTIATE_TEST_SUITE_P(, TokenizerReference,
                         testing::Values("gpt2", "gpt2_prefix", "smollm", "opt", "llama3", "qwen2",
                                         "tekken", "deepseek", "llama2", "mistral", "metaspace",
                                         "metaspace_old", "gemma", "unknown", "unknown_each"),
                         [](const auto& kind) { return kind.param; });

}  // namespace
}  // namespace zi
