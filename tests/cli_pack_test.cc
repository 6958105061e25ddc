// The program with weights of fewer bits: packed before a run and in it, and what cannot be packed.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "cli_harness.h"

namespace zi::test {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

std::vector<std::string> packed_run_of(const std::string& model,
                                       std::vector<std::string> more = {}) {
  std::vector<std::string> out = {"--model",          model, "--prompt", "In the beginning God",
                                  "--max-new-tokens", "8",   "--output", "-"};
  out.insert(out.end(), more.begin(), more.end());
  return out;
}

/// Token ids and logprobs of the only result.
nlohmann::json answer_of(const Ended& ended) {
  EXPECT_EQ(ended.code, 0) << ended.err;
  const auto lines = json_lines(ended.out);
  EXPECT_EQ(lines.size(), 1u) << ended.err;
  return lines.empty() ? nlohmann::json() : lines[0].at("logprobs");
}

TEST(CliPack, APackedCheckpointAnswersAsARunThatPacksWhileItLoads) {
  const TemporaryFolder folder;
  const Ended pack = run_job(0, {"pack", "--model", model(), "--output", folder / "packed",
                                 "--weight-format", "int4", "--head-format", "int8"});
  ASSERT_EQ(pack.code, 0) << pack.err;
  EXPECT_THAT(pack.err, HasSubstr("int4 in groups of 16, head and embedding in int8"));
  const std::vector<std::string> more = {"--logprobs", "2"};
  std::vector<std::string> packing = more;
  packing.insert(packing.end(), {"--weight-format", "int4", "--head-format", "int8"});
  for (const int ranks : {0, 2}) {
    const Ended made = run_job(ranks, packed_run_of(model(), packing));
    EXPECT_THAT(made.err,
                AllOf(HasSubstr("bfloat16 blocks are packed in int4 in groups of 16 while loading"),
                      HasSubstr("bfloat16 head and embedding are packed in int8")));
    std::vector<std::string> nvme = more;
    nvme.insert(nvme.end(), {"--nvme-offload-path", folder / "nvme"});
    const Ended read = run_job(ranks, packed_run_of(folder / "packed", nvme));
    EXPECT_THAT(read.err, AllOf(Not(HasSubstr("while loading")), Not(HasSubstr("other times")),
                                HasSubstr("weights multiplied (int4g16f8)")));
    EXPECT_EQ(answer_of(made), answer_of(read)) << ranks;
  }
  const Ended other = run_job(2, packed_run_of(folder / "packed", {"--weight-format", "int8"}));
  EXPECT_EQ(other.code, 2);
  EXPECT_EQ(count_of(other.err, "error: "), 1u) << other.err;
  EXPECT_THAT(other.err, HasSubstr("--weight-format asks for int8"));
  const Ended plan = run_job(0, {"plan", "--model", folder / "packed", "--json"});
  EXPECT_EQ(json_lines(plan.out).at(0).at("weight_format"), "int4g16f8") << plan.err;
}

TEST(CliPack, RanksWithOtherFormatsAreRefusedByName) {
  for (const char* flag : {"--weight-format", "--head-format"}) {
    std::vector<std::string> arguments = packed_run_of(model(), {flag, "int8"});
    for (const char* word : {":", "-np", "1", ZI_BINARY}) arguments.emplace_back(word);
    for (const std::string& word : packed_run_of(model(), {flag, "int4"}))
      arguments.push_back(word);
    const Ended ended = run_job(1, arguments);
    EXPECT_EQ(ended.code, 2) << ended.err;
    EXPECT_EQ(count_of(ended.err, "error: "), 1u) << ended.err;
    EXPECT_THAT(ended.err, AllOf(HasSubstr(std::string(flag) + " must be the same on every rank"),
                                 HasSubstr("int8g32f8"), HasSubstr("int4g16f8")));
  }
}

/// A copy of the bundled model with a value in row 500 of a matrix that nothing can pack.
std::string spoilt_model(const TemporaryFolder& folder, std::uint16_t value) {
  const std::string name = "transformer.h.1.self_attention.query_key_value.weight";
  const std::string copy = copy_of_model(folder);
  for (const auto& entry : fs::directory_iterator(copy)) {
    if (entry.path().extension() != ".safetensors") continue;
    const std::string bytes = read_file(entry.path());
    std::uint64_t size = 0;
    std::memcpy(&size, bytes.data(), sizeof size);
    const auto header = nlohmann::json::parse(bytes.substr(8, size));
    if (!header.contains(name)) continue;
    const auto begin = header.at(name).at("data_offsets")[0].get<std::size_t>();
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(8 + size + begin + (500 * 320 + 11) * 2));
    file.write(reinterpret_cast<const char*>(&value), 2);
  }
  return copy;
}

TEST(CliPack, AValueThatCannotBePackedEndsEveryRankWithOneLine) {
  const std::uint16_t nan = 0x7fc0, infinity = 0xff80, large = 0x7149;  // 1e30
  for (const std::uint16_t value : {nan, infinity, large}) {
    const TemporaryFolder folder;
    const std::string spoilt = spoilt_model(folder, value);
    const std::string line = "tensor `h.1.self_attention.query_key_value.weight`: row 500 has";
    for (const int ranks : {1, 3}) {
      for (const bool nvme : {false, true}) {
        if (value != nan && nvme != (ranks == 3)) continue;  // each once is enough
        std::vector<std::string> more = {"--weight-format", value == large ? "int8" : "int4"};
        if (nvme) more.insert(more.end(), {"--nvme-offload-path", folder / "nvme"});
        const Ended ended = run_job(ranks, packed_run_of(spoilt, more));
        EXPECT_EQ(ended.code, 2) << ended.err;
        EXPECT_EQ(count_of(ended.err, "error: "), 1u) << ended.err;
        EXPECT_EQ(count_of(ended.err, line), 1u) << ended.err;
        if (ranks == 3) {
          EXPECT_THAT(ended.err, HasSubstr("[rank 1/3"));  // rows 320 to 639
        }
      }
    }
    const Ended pack = run_job(
        0, {"pack", "--model", spoilt, "--output", folder / "packed", "--weight-format", "int4"});
    EXPECT_EQ(pack.code, 2) << pack.err;
    EXPECT_EQ(count_of(pack.err, line), 1u) << pack.err;
    EXPECT_FALSE(fs::exists(folder / "packed"));
    EXPECT_FALSE(fs::exists(folder / "packed.partial"));
  }
}

TEST(CliPack, TakesItsOwnFlagsAndRefusesWhatItCannotDo) {
  const auto refused = [](std::vector<std::string> arguments, const std::string& text) {
    arguments.insert(arguments.begin(), "pack");
    const Ended ended = run_job(0, arguments);
    EXPECT_EQ(ended.code, 2) << text;
    EXPECT_THAT(ended.err, HasSubstr(text));
  };
  const TemporaryFolder folder;
  refused({}, "no model: give --model");
  refused({"--model", model()}, "give --output DIR");
  refused({"--model", model(), "--output", folder / "p"}, "nothing to pack: give --weight-format");
  refused({"--model", model(), "--output", folder / "p", "--weight-format", "int5"},
          "--weight-format: `int5` is not one of stored|int8|int4");
  refused({"--model", model(), "--output", folder.path() + "/p", "--batch-size", "8"},
          "unknown flag `--batch-size`");
  refused({"--model", folder / "none", "--output", folder / "p", "--weight-format", "int4"},
          "none");
  // A place that cannot be written is found before anything runs.
  refused({"--model", model(), "--output", "/proc/packed", "--weight-format", "int4"},
          "/proc/packed.partial");
  refused({"--model", model(), "--output", folder / "missing/p", "--weight-format", "int4"},
          "missing/p.partial");
  EXPECT_FALSE(fs::exists(folder / "p"));
  const Ended help = run_job(0, {"pack", "--help"});
  EXPECT_EQ(help.code, 0);
  EXPECT_THAT(help.out, AllOf(HasSubstr("--output DIR"), HasSubstr("--head-format"),
                              Not(HasSubstr("--batch-size"))));
}

TEST(CliPack, AStoppedOneLeavesNothing) {
  const TemporaryFolder folder;
  const std::string command = std::string(ZI_MAKE_CHECKPOINT) + " --single --config " +
                              ZI_SOURCE_DIR + "/config/models/bloom-560m/config.json --out " +
                              folder.path() + "/model > /dev/null";
  if (fs::space(folder.path()).available < 4'000'000'000) GTEST_SKIP() << "needs 4 GB of disk";
  ASSERT_EQ(std::system(command.c_str()), 0);
  Job job(0, {"pack", "--model", folder / "model", "--output", folder / "packed", "--weight-format",
              "int4"});
  for (int i = 0; i < 2000 && !fs::exists(folder / "packed.partial/model.safetensors"); ++i) {
    usleep(5000);
  }
  ASSERT_TRUE(fs::exists(folder / "packed.partial/model.safetensors"));
  job.signal(SIGTERM);
  const Ended ended = job.wait();
  EXPECT_EQ(ended.code, 143) << ended.err;
  EXPECT_THAT(ended.err, HasSubstr("stopped by SIGTERM; nothing was left behind"));
  EXPECT_FALSE(fs::exists(folder / "packed"));
  EXPECT_FALSE(fs::exists(folder / "packed.partial"));
}

}  // namespace
}  // namespace zi::test
